"""The governor: it checks the actions of the policy and decides the command of the motors at each tick.

Pure: no clock and no input or output. The same calls give the same commands bit for bit, so that a flight record can be
replayed. It fails closed: only actions that are fresh, meant for this episode and within limits move the arm.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .action_queue import ActionQueue, ScheduledStep
from .chunk import ActionChunk
from .chunk_checks import FAULT_REASONS, GovernorStatus, check_chunk
from .monitors import LagMonitor, OverrunMonitor, describe_distances
from .motion import LimitArrays, limited_step
from .outputs import Event, GovernorVerdict, MotorCommand
from .rules import Rules
from .step_checks import StepChecker

STATES = ("idle", "ready", "ramping", "moving", "stopping", "holding", "stopped")
MOVING_STATES = ("ramping", "moving", "stopping")


class Governor:
    """Accepts chunks and gives commands.

    States: "idle" (no episode), "ready" (waits for the first chunk), "ramping" (slowly towards fresh targets),
    "moving", "stopping" (slow stop), "holding" (fresh chunks end it) and "stopped" (latched until `rearm`). Times are
    steady seconds.

    Attributes:
        rules: What it decides by.
        state: One of STATES.
        reason: Why it last held or stopped, one word.
        counts: Numbers of ticks, overruns, clamps, smoothed ticks, accepted chunks and stops.
        holds: Number of holds by reason.
        rejected: Number of rejected requests by reason.
        sequence: Sequence number of the newest accepted chunk of the episode, -1 before the first.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._limits = LimitArrays.from_limits(rules.limits)
        self._steps = StepChecker(rules, self._limits)
        self._overruns, self._lag = OverrunMonitor(rules), LagMonitor(rules, self._limits)
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
        self._velocity = np.zeros(len(rules.limits.names))
        self._hold_pending = self._measurement_valid = False
        self._state_since = self._min_observation_time = -math.inf
        self._ramp_until = math.inf
        self._last_tick = -math.inf

    # Requests of the session and the control loop.

    def begin(self, episode: int, measured: np.ndarray, now: float) -> GovernorVerdict:
        """Begin an episode, unless the governor is stopped or the measured pose [A] is outside the limits.

        The pose is held until the first chunk that was decided from an observation after `now`.
        """
        if self.state == "stopped":
            return self._reject("stopped", f"stopped ({self.reason}): re-arm first", now)
        if not self._is_valid_measurement(measured):
            return self._reject("measurement", "the measured pose is not finite or of another shape", now)
        outside = self.rules.limits.describe_violations(measured)
        if outside:
            return self._reject("outside", f"the arm is outside its limits: {'; '.join(outside)}", now)
        self._measured, self._measured_at = np.array(measured, dtype=np.float64), now
        self._overruns.clear()
        self._episode, self.sequence = episode, -1
        self._min_observation_time = now
        self._enter_state("ready", f"episode {episode}", now)
        self._hold_pose(now)
        return GovernorVerdict(True)

    def end(self, now: float) -> None:
        """End the episode: hold the pose, and reject chunks until the next `begin`."""
        self._episode = None
        if self.state not in ("idle", "stopped"):
            self._enter_state("idle", "the episode ended", now)
            self._hold_pose(now)

    def submit(self, chunk: ActionChunk, now: float) -> GovernorVerdict:
        """Accept a whole chunk or reject it whole; a broken one also stops the arm until `rearm`."""
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
        """Stop, latched, because the policy or something behind it is broken."""
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
        """Drop the queue because the instruction has changed; hold until a chunk from a later observation."""
        self.hold("instruction", "the instruction changed", now)

    def rearm(self, now: float) -> GovernorVerdict:
        """End a stop: hold the pose, and accept chunks that were decided from observations after `now`."""
        if self.state != "stopped":
            return GovernorVerdict(False, "not_stopped", "nothing to re-arm")
        self._overruns.clear()
        self._min_observation_time = now
        self._enter_state("holding" if self._episode is not None else "idle", "re-armed", now)
        self._hold_pose(now)
        return GovernorVerdict(True)

    def remaining(self, now: float) -> int:
        """Return how many steps are queued, including the present one."""
        return self._action_queue.remaining(now)

    def tick(
        self, now: float, measured: np.ndarray | None, *, measured_at: float, overran: bool = False
    ) -> MotorCommand:
        """Return the command for this tick; call it once per control period.

        Args:
            now: The time of the tick.
            measured: The joints [A]; None if the bus did not answer.
            measured_at: When they were measured.
            overran: Whether this tick is late.
        """
        self.counts["ticks"] += 1
        seconds = min(max(now - self._last_tick, 0.0), self.rules.tick)
        self._last_tick = now
        self._store_measurement(measured, measured_at, now)
        self._check_overruns(now, overran=overran)
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

    # Checks of each tick.

    def _is_valid_measurement(self, measured: np.ndarray | None) -> bool:
        return (
            measured is not None and np.shape(measured) == self._limits.low.shape and bool(np.isfinite(measured).all())
        )

    def _store_measurement(self, measured: np.ndarray | None, measured_at: float, now: float) -> None:
        self._measurement_valid = self._is_valid_measurement(measured) and measured_at <= now
        if not self._measurement_valid:
            return
        self._measured, self._measured_at = np.array(measured, dtype=np.float64), measured_at
        if self._hold_pending and self.state in ("holding", "stopped", "idle") and self._is_fresh(now):
            self._hold_pose(now)

    def _is_fresh(self, now: float) -> bool:
        return self._measured is not None and now - self._measured_at <= max(3 * self.rules.tick, 0.05)

    def _check_overruns(self, now: float, *, overran: bool) -> None:
        if overran:
            self.counts["overruns"] += 1
        detail = self._overruns.add(now, overran=overran)
        if detail and self.state in ("ramping", "moving"):
            self._enter_state("stopping", f"overruns: {detail}", now)
        elif detail and self.state in ("ready", "holding"):
            self._latch_stop("overruns", detail, now)

    def _check_following(self, now: float) -> None:
        """Hold if the arm cannot be measured, and stop if it does not follow."""
        if not self._measurement_valid:
            self._hold("bus", "the arm's joints could not be read", now)
            self._min_observation_time = now
        elif now - self._measured_at > self.rules.measurement_age:
            age = now - self._measured_at
            self._hold("measurement_age", f"the joints were measured {age:.3f} s ago", now)
            self._min_observation_time = now
        elif self.rules.follows and self.state in MOVING_STATES:
            stuck = self._lag.add(_required(self._command), _required(self._measured))
            if stuck:
                self._latch_stop("stuck", f"{stuck} stays far behind its target", now)

    def _check_displacement(self, now: float) -> None:
        """Let the goal of a held arm follow if it was displaced: a servo must not jump back when its torque returns."""
        if not self._measurement_valid or self._command is None or now - self._state_since < self.rules.rest_seconds:
            return
        away = np.abs(self._command - self._clipped_measurement())  # [A]
        moved = away > self._limits.position_tolerance
        if not moved.any():
            return
        detail = f"the arm was moved while it was held: {describe_distances(self.rules.limits.names, away, moved)}"
        self.counts["displaced"] += 1
        if self.state == "holding":
            self._latch_stop("displaced", detail, now)
            return
        self._events.append(Event("displaced", detail, now))
        self._hold_pose(now)

    # Motion.

    def _update_command(self, now: float, seconds: float) -> int:
        """Move the command towards the step that is due; return the sequence number of its chunk, -1 without one."""
        step = self._action_queue.step(now)
        if step is None:
            if self.state == "stopping":
                self._latch_stop("overruns", "stopped as nothing fresh was left", now)
            elif self.state in MOVING_STATES:
                self._hold("starved", "no fresh action is left", now)
            return -1
        clipped_target = self._limits.clip(step.action)
        if not self._accept_step(step, clipped_target, now) or self.state not in MOVING_STATES:
            return -1
        speed = self._limits.speed
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
            _required(self._command),
            self._velocity,
            clipped_target,
            seconds=seconds,
            speed=speed,
            acceleration=self._limits.acceleration,
            low=self._limits.low,
            high=self._limits.high,
        )
        self.counts["smoothed"] += smoothed
        reach = self._limits.speed * self.rules.period
        if self.state == "ramping" and np.all(np.abs(clipped_target - self._command) <= reach):
            self._enter_state("moving", "the ramp has reached its target", now)
        return step.sequence

    def _accept_step(self, step: ScheduledStep, clipped_target: np.ndarray, now: float) -> bool:
        """Check a step when it becomes due: start to move, clamp and count, or hold; return whether it is played.

        An arm at rest starts to move only while it is measured: the target is compared with the measured pose.
        """
        last = self._steps.step
        if step is last:
            return True
        if self.state in ("ready", "holding") and not (self._measurement_valid and self._is_fresh(now)):
            return False
        last_sequence = last.sequence if last is not None else -1
        if not self.rules.follows and step.sequence != last_sequence and self.state in MOVING_STATES:
            # The arm did not move, so the chunk was decided from the pose where it still is.
            self._command, self._velocity = self._clipped_measurement(), np.zeros_like(self._velocity)
            self._steps.forget_target()
            self.state = "ready"
        check = self._steps.check(step, clipped_target, has_speed=self.state in ("moving", "stopping"))
        self.counts["position_clamps"] += check.position_clamped
        self.counts["speed_clamps"] += check.speed_clamped
        if self.state in ("ready", "holding"):
            if check.refused and check.kind == "position":
                return self._hold_for_step("position", check.detail, now)
            if not self._start_motion(clipped_target, now):
                return False
        elif check.refused or self._steps.too_many_violations(check):
            return self._hold_for_step(check.kind, check.detail, now)
        self._steps.accept(step, clipped_target, check)
        return True

    def _hold_for_step(self, reason: str, detail: str, now: float) -> bool:
        self._hold(reason, detail, now)
        self._min_observation_time = now
        return False

    def _start_motion(self, clipped_target: np.ndarray, now: float) -> bool:
        """Start to move if the first target is near the measured pose; else ramp, if the rules say so, or refuse."""
        distance = np.abs(clipped_target - self._clipped_measurement())  # [A]
        far = distance > self._limits.start_tolerance
        if not far.any():
            self._enter_state("moving", "", now)
            return True
        distances = describe_distances(self.rules.limits.names, distance, far)
        detail = f"the first target is far from the measured pose: {distances}"
        if self.rules.start == "ramp":
            self._ramp_until = now + self.rules.ramp_seconds
            self._enter_state("ramping", detail, now)
            return True
        return self._hold_for_step("far", detail, now)

    # States.

    def _hold_pose(self, now: float) -> None:
        """Make the measured pose the command; if it is not fresh, the last command stays until it is."""
        self._velocity = np.zeros_like(self._velocity)
        self._hold_pending = not self._is_fresh(now)
        if not self._hold_pending or (self._command is None and self._measured is not None):
            self._command = self._clipped_measurement()
        self._action_queue.drop()
        self._steps.reset()
        self._lag.reset()

    def _clipped_measurement(self) -> np.ndarray:
        return self._limits.clip(_required(self._measured))

    def _enter_state(self, state: str, detail: str, now: float) -> None:
        self.state, self._state_since = state, now
        self._events.append(Event(state, detail, now))

    def _hold(self, reason: str, detail: str, now: float) -> None:
        # Holds that follow each other, chunk after rejected chunk, are one hold: it began when the arm came to rest.
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


def _required(pose: np.ndarray | None) -> np.ndarray:
    """Return a pose that is there once an episode has begun."""
    if pose is None:
        raise RuntimeError("the governor has no pose yet: call begin first")
    return pose
