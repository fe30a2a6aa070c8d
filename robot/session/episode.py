"""One episode of a session: see, let decide, send, and look after everything that may go wrong meanwhile."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ..chunk_policy import ChunkPolicy
from ..control.link import ControlLink
from ..control.loop_metrics import DurationHistogram, LoopMetrics, quantile_ms
from ..control.messages import Measurement
from ..governor.action_queue import ActionQueue
from ..governor.chunk import ActionChunk
from ..governor.rules import Rules
from .cameras import CameraReader, ObservationRefused, TimestampedFrame, oldest_capture_time
from .decision_thread import DecisionResult, DecisionThread
from .operator_commands import OperatorCommands
from .summary import EpisodeSummary, SessionObserver, StepSnapshot

if TYPE_CHECKING:
    from .settings import SessionSettings

CYCLE_SECONDS = 0.005
"""Seconds that the session waits at most before it looks again."""

HEARTBEAT_SECONDS = 0.04
POLL_SECONDS = 0.1
MAX_JOINTS_AGE = 0.1
"""Seconds after which measured joints are not decided from any more."""

MAX_REFUSED_SECONDS = 0.2
"""So long nothing may be seen before the arm is held; what shows a wrong picture is held at once."""

IMMEDIATE_HOLD_REASONS = ("camera_frozen", "camera_blank", "camera_size")
FIRST_OBSERVATION_SECONDS = 10.0


def first_observation(link: ControlLink, cameras: CameraReader) -> dict[str, Any]:
    """Return a first observation, as soon as joints and pictures are there; WorldError where they do not come."""
    ends = time.monotonic() + FIRST_OBSERVATION_SECONDS
    while True:
        joints = link.joints()
        try:
            if joints is not None:
                frames = cameras.latest(joints[0])
                return _observation(frames, joints[0])
            why = "the joints were not read yet"
        except ObservationRefused as refusal:
            why = str(refusal)
        if time.monotonic() > ends:
            raise WorldError(f"nothing to decide from within {FIRST_OBSERVATION_SECONDS:g} s: {why}")
        link.wait(CYCLE_SECONDS)


def call_with_timeout(
    link: ControlLink, decisions: DecisionThread, call: Callable[[], Any], seconds: float
) -> DecisionResult:
    """Return what came of a call of the decider's, and look after the link meanwhile.

    Raises what the call raised, and WorldError where it takes longer than that.
    """
    label = object()
    decisions.submit(label, call)
    # What was asked for before, by an episode that is over, comes first and is nothing to anybody.
    while (decision := decisions.take()) is None or decision.label is not label:
        link.poll()
        link.wait(CYCLE_SECONDS)
        if decisions.busy_seconds > seconds:
            raise _hung_error(decisions.busy_seconds)
    if decision.error is not None:
        raise _policy_error(decision.error)
    return decision


class EpisodeRunner:
    """Runs one episode after the other over one link, with one decider."""

    def __init__(
        self,
        chunk_policy: ChunkPolicy,
        link: ControlLink,
        cameras: CameraReader,
        decisions: DecisionThread,
        rules: Rules,
        settings: SessionSettings,
        observer: SessionObserver,
        operator_commands: OperatorCommands,
        typical_decision_seconds: float,
    ) -> None:
        self._decider, self._link, self._cameras, self._decisions = chunk_policy, link, cameras, decisions
        self._rules, self._settings, self._observer, self._operator_commands = (
            rules,
            settings,
            observer,
            operator_commands,
        )
        self._typical_decision_seconds = typical_decision_seconds
        self._durations = DurationHistogram()
        self._generation = 0
        self._reset_state(0, "")

    def run(self, index: int, instruction: str, seconds: float, ended: Callable[[], Any] | None) -> EpisodeSummary:
        """Run an episode until its end condition, its time, an order or a stop ends it.

        Raises InputError where the first command is refused as too far from the pose, WorldError where the decider
        hangs or the control process is gone, and what decider and callbacks raise.
        """
        self._reset_state(index, instruction)
        call_with_timeout(
            self._link, self._decisions, lambda: self._decider.reset(instruction), self._settings.warm_up_seconds
        )
        verdict = self._link.begin_episode(index)
        if not verdict.accepted:
            raise InputError(
                "the arm's pose",
                got=verdict.detail,
                expected="a pose from which an episode can begin",
                fix="Move the arm to where the demonstrations began (it has no torque).",
            )
        # Nothing that was seen before the arm was ready, such as the scene before it was set up anew, is decided from.
        self._began_at = started = time.monotonic()
        self._observer.on_episode_start(index, instruction)
        outcome, ended_by = None, ""
        next_poll = next_step = started
        while not ended_by:
            self._link.wait(CYCLE_SECONDS)
            now = time.monotonic()
            measurement = self._heartbeat(now)
            ended_by = self._handle_operator_commands()
            frames, joints, taken = self._observe(now)
            self._take_decision()
            if measurement is not None and frames is not None and measurement.state != "stopped":
                self._request_decision(now, measurement, frames, joints, taken)
            if self._decisions.busy_seconds > self._settings.decision_seconds:
                raise _hung_error(self._decisions.busy_seconds)
            if now >= next_step and frames is not None:
                next_step = max(next_step + self._rules.period, now - self._rules.period)
                target, state = (measurement.target, measurement.state) if measurement else (None, "ready")
                view = StepSnapshot(taken, index, self._instruction, frames, joints, target, state)
                self._observer.on_step(view)
            if ended is not None and now >= next_poll:
                next_poll = now + POLL_SECONDS
                outcome = ended()
                ended_by = ended_by or ("condition" if outcome is not None else "")
            ended_by = ended_by or self._check_stopped(now, measurement)
            ended_by = ended_by or ("time" if now - started >= seconds else "")
        return EpisodeSummary(
            index=index,
            instruction=self._instruction,
            ended_by=ended_by,
            seconds=time.monotonic() - started,
            decisions=self._sequence + 1,
            outcome=outcome,
            holds=dict(self._holds),
            refused_observations=dict(self._refusal_counts),
        )

    def with_decision_metrics(self, figures: LoopMetrics) -> LoopMetrics:
        """Return the loop's figures with those of the decisions."""
        return dataclasses.replace(
            figures,
            decisions=self._durations.count,
            decision_p50_ms=quantile_ms(self._durations, 0.5),
            decision_p99_ms=quantile_ms(self._durations, 0.99),
        )

    def _reset_state(self, index: int, instruction: str) -> None:
        self._index, self._instruction = index, instruction
        # Whatever is under way was asked for by another episode.
        self._generation += 1
        self._sequence, self._stopped_at, self._last_heartbeat = -1, math.inf, -math.inf
        self._refused_since = math.inf
        self._hold_reason, self._reset_pending = "", False
        self._last_chunk: ActionChunk | None = None
        self._sent_at = self._began_at = -math.inf
        self._holds: Counter[str] = Counter()
        self._refusal_counts: Counter[str] = Counter()
        self._queue_copy = ActionQueue(self._rules.aggregation, self._rules.max_step_age)

    def _heartbeat(self, now: float) -> Measurement | None:
        """Give a sign of life, take in what the control process tells, and pass it on."""
        if now - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._link.send_heartbeat()
        measurement = self._link.latest()
        for sequence, verdict in self._link.take_verdicts():
            if verdict.accepted and self._last_chunk is not None and sequence == self._last_chunk.sequence:
                self._queue_copy.put(self._last_chunk, now)
        for event in self._link.take_events():
            self._observer.on_event(event)
            if event.kind == "holding":
                reason, _, detail = event.detail.partition(": ")
                self._holds[reason] += 1
                if reason == "far" and self._settings.start == "refuse":
                    raise InputError(
                        "first command",
                        got=detail,
                        expected="one near the measured pose",
                        fix="Move the arm near to where the demonstrations began, or ask for a ramp (start=ramp).",
                    )
        return measurement

    def _handle_operator_commands(self) -> str:
        for order, what in self._operator_commands.take():
            if order == "stop":
                self._link.stop(what)
            elif order == "rearm":
                self._link.rearm()
                self._stopped_at = math.inf
            elif order == "instruction":
                self._link.drop()
                self._queue_copy.drop()
                self._generation += 1
                self._instruction = what
                self._reset_pending = True
            else:
                return "asked"
        return ""

    def _observe(self, now: float) -> tuple[dict[str, TimestampedFrame] | None, np.ndarray, float]:
        """Return frames, joints and when these were taken; no frames where nothing may be decided from them."""
        found = self._link.joints()
        if found is None:
            return None, np.zeros(0), now
        joints, taken = found
        try:
            frames = self._cameras.latest(joints, now)
            if now - taken > MAX_JOINTS_AGE:
                raise ObservationRefused("joints_age", f"the joints were measured {now - taken:.3f} s ago")
        except ObservationRefused as refusal:
            self._refused_since = min(self._refused_since, now)
            if self._hold_reason != refusal.reason:
                self._refusal_counts[refusal.reason] += self._hold_reason == ""
                if refusal.reason in IMMEDIATE_HOLD_REASONS or now - self._refused_since > MAX_REFUSED_SECONDS:
                    self._hold_reason = refusal.reason
                    self._link.hold(refusal.reason, str(refusal))
            return None, joints, taken
        self._refused_since, self._hold_reason = math.inf, ""
        return frames, joints, taken

    def _request_decision(
        self,
        now: float,
        measurement: Measurement,
        frames: dict[str, TimestampedFrame],
        joints: np.ndarray,
        taken: float,
    ) -> None:
        """Ask for a decision where one is due and none is under way or on its way to the governor."""
        if self._decisions.is_busy:
            return
        if self._reset_pending:
            instruction = self._instruction
            self._reset_pending = False
            self._decisions.submit(None, lambda: self._decider.reset(instruction))
            return
        if self._link.last_judged_sequence < self._sequence or measurement.time <= self._sent_at:
            return
        contract, period = self._decider.contract, self._rules.period
        lead = max(
            (contract.chunk - contract.execute) * period, 1.5 * self._typical_decision_seconds + 2 * self._rules.tick
        )
        left = measurement.remaining * period - (now - measurement.time)
        observed = min(taken, oldest_capture_time(frames))
        if left > lead or observed <= self._began_at:
            return
        observation = _observation(frames, joints)
        label = (self._generation, observed)
        if self._settings.real_time_chunking:
            leftover = self._queue_copy.leftover(now)
            delay = math.ceil(self._typical_decision_seconds / period)
            self._decisions.submit(label, lambda: self._decider.continue_chunk(observation, leftover, delay))
        else:
            self._decisions.submit(label, lambda: self._decider.decide(observation))

    def _take_decision(self) -> None:
        decision = self._decisions.take()
        if decision is None:
            return
        if decision.error is not None:
            raise _policy_error(decision.error)
        if decision.label is None:
            return
        generation, observed = decision.label
        self._durations.add(decision.seconds)
        self._typical_decision_seconds += 0.1 * (decision.seconds - self._typical_decision_seconds)
        if generation != self._generation:
            return
        actions = decision.actions
        if not isinstance(actions, np.ndarray):
            raise WorldError(f"the decider gave a {type(actions).__name__} instead of an array")
        self._sequence += 1
        chunk = ActionChunk(self._rules.session, self._index, self._sequence, observed, self._rules.period, actions)
        self._link.send(chunk)
        self._last_chunk, self._sent_at = chunk, time.monotonic()
        self._observer.on_chunk(chunk, decision.seconds)

    def _check_stopped(self, now: float, measurement: Measurement | None) -> str:
        if measurement is None or measurement.state != "stopped":
            self._stopped_at = math.inf
            return ""
        self._stopped_at = min(self._stopped_at, now)
        if now - self._stopped_at >= self._settings.rearm_wait_seconds:
            return f"stopped: {measurement.reason}"
        return ""


def _observation(frames: dict[str, TimestampedFrame], joints: np.ndarray) -> dict[str, Any]:
    images = {name: frame.image for name, frame in frames.items()}
    return {"pixels": images, "agent_pos": joints.astype(np.float32)}


def _hung_error(seconds: float) -> WorldError:
    return WorldError(f"the decider has given no answer for {seconds:.1f} s; the arm is held")


def _policy_error(error: BaseException) -> BaseException:
    """Return what to raise for an error in the decisions' thread: ours as it is, others as the world's."""
    if isinstance(error, SaccadeError) or not isinstance(error, Exception):
        return error
    failure = WorldError(f"the decider failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
