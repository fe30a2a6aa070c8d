"""The governor: stands between decisions and motors and decides, tick by tick, what the motors are told.

Pure: no clock, no input or output, the same calls give the same commands bit for bit, so that a flight record can be
replayed. It fails closed: whatever it does not know to be fresh, meant for this episode and within limits, moves
nothing.
"""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from .action_queue import ActionQueue, ScheduledStep
from .chunk import ActionChunk
from .chunk_checks import FAULT_REASONS, GovernorStatus, check_chunk
from .motion import limited_step
from .outputs import Event, GovernorVerdict, MotorCommand
from .rules import Rules

STATES = ("idle", "ready", "ramping", "moving", "stopping", "holding", "stopped")
MOVING_STATES = ("ramping", "moving", "stopping")


class Governor:
    """Take chunks, give commands.

    States: "idle" (no episode), "ready" (waits for the first chunk), "ramping" (slowly towards fresh targets),
    "moving", "stopping" (slow stop), "holding" (fresh chunks end it) and "stopped" (latched until `rearm`).
    `counts` counts ticks, clamps and smoothed ticks, `holds` and `rejected` count by reason.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        limits = rules.limits
        self._low, self._high, self._speed, self._acceleration, self._tolerance, self._start, self._max_lag = (
            np.array(each)
            for each in (
                *(limits.low, limits.high, limits.speed, limits.acceleration),
                *(limits.position_tolerance, limits.start_tolerance, limits.lead),
            )
        )
        self.state, self.reason = "idle", ""
        self.counts: Counter[str] = Counter()
        self.holds: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.sequence = -1
        self._episode: int | None = None
        self._action_queue = ActionQueue(rules.aggregation, rules.max_step_age)
        self._events: list[Event] = []
        self._measured: np.ndarray | None = None
        self._measured_at = -math.inf
        self._command: np.ndarray | None = None
        self._velocity = np.zeros(len(limits.names))
        self._hold_pending = self._measurement_valid = False
        self._state_since = self._min_observation_time = -math.inf
        self._ramp_until = math.inf
        self._last_tick = -math.inf
        self._late_ticks: deque[float] = deque()
        self._reset_step_state()

    # What the session and the control loop ask for.

    def begin(self, episode: int, measured: np.ndarray, now: float) -> GovernorVerdict:
        """Begin an episode at the measured pose [A]; refuses while stopped, and where the pose is outside the limits.

        The pose is held until the first chunk that was decided from an observation after `now`.
        """
        if self.state == "stopped":
            return self._reject("stopped", f"stopped ({self.reason}): re-arm first", now)
        if not self._is_valid_measurement(measured):
            return self._reject("measurement", "the measured pose is not finite or of another shape", now)
        outside = self.rules.limits.outside(measured)
        if outside:
            return self._reject("outside", f"the arm stands outside its limits: {'; '.join(outside)}", now)
        self._measured, self._measured_at = np.array(measured, dtype=np.float64), now
        self._late_ticks.clear()
        self._episode, self.sequence = episode, -1
        self._min_observation_time = now
        self._enter_state("ready", f"episode {episode}", now)
        self._hold_pose(now)
        return GovernorVerdict(True)

    def end(self, now: float) -> None:
        """End the episode: the pose is held, chunks are refused until the next `begin`."""
        self._episode = None
        if self.state not in ("idle", "stopped"):
            self._enter_state("idle", "the episode ended", now)
            self._hold_pose(now)

    def submit(self, chunk: ActionChunk, now: float) -> GovernorVerdict:
        """Take a whole chunk or refuse it whole; a fault of the policy itself also stops until `rearm`."""
        stopped = self.reason if self.state == "stopped" else None
        status = GovernorStatus(
            self._episode, self.sequence, self._min_observation_time, stopped, self.state == "stopping"
        )
        reason, detail = check_chunk(chunk, self.rules, status, now)
        if reason in FAULT_REASONS:
            self.fault(reason, detail, now)
        if reason:
            return self._reject(reason, detail, now)
        self.sequence = chunk.sequence
        if self._action_queue.put(chunk, now) == 0 and self.rules.aggregation != "keep":
            return self._reject("past", "all its steps are past", now)
        self.counts["accepted"] += 1
        return GovernorVerdict(True)

    def fault(self, reason: str, detail: str, now: float) -> None:
        """Stop, latched, because something behind the decisions is broken."""
        self._latch_stop(reason, detail, now)

    def stop(self, reason: str, now: float) -> None:
        """Stop at the measured pose, latched until `rearm`."""
        self._latch_stop("stop", reason, now)

    def hold(self, reason: str, detail: str, now: float) -> None:
        """Hold the measured pose; only chunks decided from observations after `now` end it."""
        if self.state in ("ready", *MOVING_STATES):
            self._hold(reason, detail, now)
        self._action_queue.drop()
        self._min_observation_time = max(self._min_observation_time, now)

    def drop(self, now: float) -> None:
        """Forget what is queued, as the instruction has changed; hold until a chunk decided from now on arrives."""
        self.hold("instruction", "the instruction changed", now)

    def rearm(self, now: float) -> GovernorVerdict:
        """End a stop: the pose is held, and chunks decided from observations after `now` are taken again."""
        if self.state != "stopped":
            return GovernorVerdict(False, "not_stopped", "nothing to re-arm")
        self._late_ticks.clear()
        self._min_observation_time = now
        self._enter_state("holding" if self._episode is not None else "idle", "re-armed", now)
        self._hold_pose(now)
        return GovernorVerdict(True)

    def remaining(self, now: float) -> int:
        """Return how many steps are queued."""
        return self._action_queue.remaining(now)

    def leftover(self, now: float) -> np.ndarray:
        """Return the queued actions [n, A]."""
        return self._action_queue.leftover(now)

    def tick(
        self, now: float, measured: np.ndarray | None, *, measured_at: float, overran: bool = False
    ) -> MotorCommand:
        """Return the command for this tick; call it once a control period.

        `measured`: the joints [A] at `measured_at`, None where the bus gave none. `overran`: this tick comes late.
        """
        self.counts["ticks"] += 1
        seconds = min(max(now - self._last_tick, 0.0), self.rules.tick)
        self._last_tick = now
        self._store_measurement(measured, measured_at, now)
        self._check_overruns(overran, now)
        if self.state in ("ready", *MOVING_STATES):
            self._check_following(now)
        if self.state == "holding" and now - self._state_since > self.rules.resume_seconds:
            self._latch_stop(self.reason, f"held for more than {self.rules.resume_seconds:g} s: re-arm to go on", now)
        if self.rules.follows and self.state in ("ready", "holding", "stopped", "idle"):
            self._check_displacement(now)
        sequence = -1
        if self.state in ("ready", "holding", *MOVING_STATES):
            sequence = self._update_command(now, seconds)
        events, self._events = tuple(self._events), []
        target = None if self._command is None else self._command.copy()
        return MotorCommand(target, self.state, sequence, events)

    def _reject(self, reason: str, detail: str, now: float) -> GovernorVerdict:
        self.rejected[reason] += 1
        self._events.append(Event("rejected", f"{reason}: {detail}", now))
        return GovernorVerdict(False, reason, detail)

    # What a tick looks at.

    def _is_valid_measurement(self, measured: np.ndarray | None) -> bool:
        return measured is not None and np.shape(measured) == self._low.shape and bool(np.isfinite(measured).all())

    def _store_measurement(self, measured: np.ndarray | None, measured_at: float, now: float) -> None:
        self._measurement_valid = self._is_valid_measurement(measured) and measured_at <= now
        if not self._measurement_valid:
            return
        self._measured, self._measured_at = np.array(measured, dtype=np.float64), measured_at
        if self._hold_pending and self.state in ("holding", "stopped", "idle") and self._is_fresh(now):
            self._hold_pose(now)

    def _is_fresh(self, now: float) -> bool:
        return self._measured is not None and now - self._measured_at <= max(3 * self.rules.tick, 0.05)

    def _check_overruns(self, overran: bool, now: float) -> None:
        rules = self.rules
        if overran:
            self.counts["overruns"] += 1
            self._late_ticks.append(now)
        while self._late_ticks and now - self._late_ticks[0] > rules.overrun_seconds:
            self._late_ticks.popleft()
        if len(self._late_ticks) > rules.overrun_share * rules.overrun_seconds / rules.tick:
            if self.state in ("ramping", "moving"):
                detail = f"{len(self._late_ticks)} late ticks within {rules.overrun_seconds:g} s"
                self._enter_state("stopping", f"overruns: {detail}", now)
            elif self.state in ("ready", "holding"):
                self._latch_stop(
                    "overruns", f"{len(self._late_ticks)} late ticks within {rules.overrun_seconds:g} s", now
                )

    def _check_following(self, now: float) -> None:
        """Hold where the arm cannot be seen, and stop where it does not follow."""
        if not self._measurement_valid:
            self._hold("bus", "the arm's joints could not be read", now)
            self._min_observation_time = now
        elif now - self._measured_at > self.rules.measurement_age:
            age = now - self._measured_at
            self._hold("measurement_age", f"the joints were measured {age:.3f} s ago", now)
            self._min_observation_time = now
        elif self.rules.follows and self.state in MOVING_STATES:
            behind = np.abs(self._command - self._measured) > self._max_lag
            self._lag_ticks = self._lag_ticks + 1 if behind.any() else 0
            if self._lag_ticks >= self.rules.in_a_row:
                names = [name for name, each in zip(self.rules.limits.names, behind, strict=True) if each]
                self._latch_stop("stuck", f"{', '.join(names)} stays far behind its target", now)

    def _check_displacement(self, now: float) -> None:
        """Let the goal of a held arm go with it where something moved it: a servo that was limp must not snap back."""
        if not self._measurement_valid or self._command is None or now - self._state_since < self.rules.rest_seconds:
            return
        away = np.abs(self._command - self._clipped_measurement())
        moved = away > self._tolerance
        if not moved.any():
            return
        parts = [f"{self.rules.limits.names[index]} by {away[index]:.1f}" for index in np.flatnonzero(moved)]
        detail = f"the arm was moved while it was held: {', '.join(parts)}"
        self.counts["displaced"] += 1
        if self.state == "holding":
            self._latch_stop("displaced", detail, now)
            return
        self._events.append(Event("displaced", detail, now))
        self._hold_pose(now)

    # Motion.

    def _update_command(self, now: float, seconds: float) -> int:
        """Move the command towards the step that is due; returns the sequence number of its chunk, -1 without one."""
        step = self._action_queue.step(now)
        if step is None:
            if self.state == "stopping":
                self._latch_stop("overruns", "stopped as nothing fresh was left", now)
            elif self.state in MOVING_STATES:
                self._hold("starved", "no fresh action is left", now)
            return -1
        clipped_target = np.clip(step.action, self._low, self._high)
        if not self._accept_step(step, clipped_target, now) or self.state not in MOVING_STATES:
            return -1
        speed = self._speed
        if self.state == "ramping":
            speed = speed * self.rules.ramp_share
            if now > self._ramp_until:
                self._latch_stop("ramp", f"its target was not reached within {self.rules.ramp_seconds:g} s", now)
                return -1
        elif self.state == "stopping":
            left = 1.0 - (now - self._state_since) / self.rules.slow_stop_seconds
            if left <= 0.0:
                self._latch_stop("overruns", "slowly stopped", now)
                return -1
            speed = speed * left
        self._command, self._velocity, smoothed = limited_step(
            self._command,
            self._velocity,
            clipped_target,
            seconds=seconds,
            speed=speed,
            acceleration=self._acceleration,
            low=self._low,
            high=self._high,
        )
        self.counts["smoothed"] += smoothed
        if self.state == "ramping" and np.all(
            np.abs(clipped_target - self._command) <= self._speed * self.rules.period
        ):
            self._enter_state("moving", "the ramp has reached its target", now)
        return step.sequence

    def _accept_step(self, step: ScheduledStep, clipped_target: np.ndarray, now: float) -> bool:
        """Look at a step that has become due: start, clamp and count, or hold.

        An arm that rests sets off only while it is seen: the target is compared with where it stands.
        """
        if step is self._step:
            return True
        if self.state in ("ready", "holding") and not (self._measurement_valid and self._is_fresh(now)):
            return False
        sequence = self._step.sequence if self._step is not None else -1
        if not self.rules.follows and step.sequence != sequence and self.state in MOVING_STATES:
            # The arm did not move, so the chunk was decided where the arm still stands.
            self._command, self._velocity, self._last_target = (
                self._clipped_measurement(),
                np.zeros_like(self._velocity),
                None,
            )
            self.state = "ready"
        beyond, at_once, what = self._check_step_limits(step, clipped_target)
        if self.state in ("ready", "holding"):
            if at_once and what.startswith("position"):
                self._hold("position", what, now)
                self._min_observation_time = now
                return False
            if not self._start_motion(clipped_target, now):
                return False
        elif at_once or self._consecutive_violations + beyond >= self.rules.in_a_row:
            kind = what.split(":")[0]
            self._hold(kind, what, now)
            self._min_observation_time = now
            return False
        self._consecutive_violations = self._consecutive_violations + 1 if beyond else 0
        self._step, self._last_target, self._step_start = step, clipped_target, step.start
        return True

    def _start_motion(self, clipped_target: np.ndarray, now: float) -> bool:
        """Begin to move where the first target is near the measured pose; else ramp, if asked for, or refuse."""
        distance = np.abs(clipped_target - self._clipped_measurement())
        far = distance > self._start
        if not far.any():
            self._enter_state("moving", "", now)
        elif self.rules.start == "ramp":
            self._ramp_until = now + self.rules.ramp_seconds
            self._enter_state("ramping", self._describe_distance(far, distance), now)
        else:
            self._hold("far", self._describe_distance(far, distance), now)
            self._min_observation_time = now
            return False
        return True

    def _describe_distance(self, which: np.ndarray, distance: np.ndarray) -> str:
        names = self.rules.limits.names
        parts = [f"{names[index]} by {distance[index]:.1f}" for index in np.flatnonzero(which)]
        return f"the first target is far from the measured pose: {', '.join(parts)}"

    def _check_step_limits(self, step: ScheduledStep, clipped_target: np.ndarray) -> tuple[bool, bool, str]:
        """Return whether a step is beyond tolerance, whether so far that it is not played at all, and what it is.

        Speed is that of the decisions, from step to step; in a ramp and in a slow stop there is none to speak of.
        """
        rules = self.rules
        outside = np.abs(step.action - clipped_target) / self._tolerance
        speed = np.zeros_like(outside)
        if self._last_target is not None and self.state in ("moving", "stopping"):
            # Where ticks came late, steps were skipped, and there was more time between the two.
            seconds = max(rules.period, step.start - self._step_start)
            speed = np.abs(clipped_target - self._last_target) / (self._speed * seconds)
        self.counts["position_clamps"] += bool(np.any(outside > 0.0))
        self.counts["speed_clamps"] += bool(np.any(speed > 1.0 + 1e-6))
        beyond = bool(np.any(outside > 1.0) or np.any(speed > 1.0 + rules.speed_tolerance))
        for kind, ratio, meaning in (("position", outside, "tolerance"), ("speed", speed, "limit")):
            worst = int(np.argmax(ratio))
            if ratio[worst] > rules.at_once:
                return True, True, f"{kind}: {rules.limits.names[worst]} at {ratio[worst]:.1f} times its {meaning}"
        kind = "position" if np.any(outside > 1.0) else "speed"
        return beyond, False, f"{kind}: {rules.in_a_row} steps in a row beyond the limit"

    # States.

    def _hold_pose(self, now: float) -> None:
        """Make the measured pose the command; where it is not fresh, what was commanded stays until it is."""
        self._velocity = np.zeros_like(self._velocity)
        self._hold_pending = not self._is_fresh(now)
        if not self._hold_pending or (self._command is None and self._measured is not None):
            self._command = self._clipped_measurement()
        self._action_queue.drop()
        self._reset_step_state()

    def _clipped_measurement(self) -> np.ndarray:
        return np.clip(self._measured, self._low, self._high)

    def _reset_step_state(self) -> None:
        self._step: ScheduledStep | None = None
        self._last_target: np.ndarray | None = None
        self._step_start = math.inf
        self._consecutive_violations = self._lag_ticks = 0

    def _enter_state(self, state: str, detail: str, now: float) -> None:
        self.state, self._state_since = state, now
        self._events.append(Event(state, detail, now))

    def _hold(self, reason: str, detail: str, now: float) -> None:
        # A hold that follows a hold, chunk after refused chunk, is one hold: it began when the arm came to rest.
        since = self._state_since if self.state == "holding" else now
        self.holds[reason] += self.state != "holding"
        self.reason = reason
        self._enter_state("holding", f"{reason}: {detail}", now)
        self._state_since = since
        self._hold_pose(now)

    def _latch_stop(self, reason: str, detail: str, now: float) -> None:
        if self.state != "stopped":
            self.counts["stops"] += 1
            self.reason = reason
            self._enter_state("stopped", f"{reason}: {detail}", now)
            self._hold_pose(now)
        self._action_queue.drop()
