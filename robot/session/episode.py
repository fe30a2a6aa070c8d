"""One episode of a session: observe, let the policy decide, send chunks, and handle everything that may fail."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ..chunk_policy import ChunkPolicy
from ..control.link import ControlLink
from ..control.loop_metrics import DurationHistogram, LoopMetrics, quantile_ms
from ..control.messages import Measurement
from ..governor.chunk import ActionChunk
from ..governor.rules import Rules
from .cameras import CameraReader, ObservationRefused, TimestampedFrame, oldest_capture_time
from .decision_thread import DecisionResult, DecisionThread
from .operator_commands import OperatorCommands
from .settings import SessionSettings
from .summary import EpisodeSummary, SessionObserver, StepSnapshot

CYCLE_SECONDS = 0.005
"""Longest wait of the session between two looks at everything."""

HEARTBEAT_SECONDS = 0.04
"""Seconds between two signs of life."""

POLL_SECONDS = 0.1
"""Seconds between two calls of the end condition."""

MAX_JOINTS_AGE = 0.1
"""Seconds after which measured joints are too old for a decision."""

MAX_REFUSED_SECONDS = 0.2
"""Seconds without a usable observation before the arm is held; a camera with a wrong image holds it at once."""

IMMEDIATE_HOLD_REASONS = ("camera_frozen", "camera_blank", "camera_size")
FIRST_OBSERVATION_SECONDS = 10.0


def first_observation(link: ControlLink, cameras: CameraReader) -> dict[str, Any]:
    """Return the first observation, as soon as joints and images are there.

    Returns:
        `pixels` and `agent_pos`, as `ChunkPolicy.decide` takes them.

    Raises:
        WorldError: They are not there within FIRST_OBSERVATION_SECONDS.
    """
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
            raise WorldError(f"no observation within {FIRST_OBSERVATION_SECONDS:g} s: {why}")
        link.wait(CYCLE_SECONDS)


def call_with_timeout(
    link: ControlLink, decisions: DecisionThread, call: Callable[[], Any], seconds: float
) -> DecisionResult:
    """Make a call of the policy in its thread, poll the link meanwhile, and return the result.

    Args:
        link: The link to the control process.
        decisions: The policy's thread.
        call: What to call.
        seconds: How long it may take.

    Raises:
        WorldError: The call takes longer, fails, or the control process is gone.
    """
    label = object()
    decisions.submit(label, call)
    # Results that an ended episode asked for come first and are dropped.
    while (decision := decisions.take_result()) is None or decision.label is not label:
        link.poll()
        link.wait(CYCLE_SECONDS)
        if decisions.busy_seconds > seconds:
            raise _hung_error(decisions.busy_seconds)
    if decision.error is not None:
        raise _policy_error(decision.error)
    return decision


class EpisodeRunner:
    """Runs one episode after the other over one link, with one policy.

    Args:
        chunk_policy: The policy.
        link: The link to the control process.
        cameras: The connected cameras.
        decisions: The policy's thread.
        rules: The governor's rules.
        settings: How the session runs.
        observer: Observes the session.
        operator_commands: The commands of the operator.
        typical_decision_seconds: How long a decision takes; updated as decisions are made.
    """

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
        self._chunk_policy, self._link, self._cameras, self._decisions = chunk_policy, link, cameras, decisions
        self._rules, self._settings, self._observer = rules, settings, observer
        self._operator_commands = operator_commands
        self._typical_decision_seconds = typical_decision_seconds
        self._durations = DurationHistogram()
        self._generation = 0
        self._reset_state(0, "")

    def run(
        self, index: int, instruction: str, seconds: float, end_condition: Callable[[], Any] | None
    ) -> EpisodeSummary:
        """Run an episode until its end condition, its time limit, the operator or a stop ends it.

        Args:
            index: Number of the episode.
            instruction: Its instruction.
            seconds: Its time limit.
            end_condition: What it returns, if not None, ends the episode and is its outcome.

        Raises:
            InputError: The arm is outside its limits, or the first command is refused as too far from the pose.
            WorldError: The policy hangs or fails, or the control process is gone.
        """
        self._reset_state(index, instruction)
        call_with_timeout(
            self._link, self._decisions, lambda: self._chunk_policy.reset(instruction), self._settings.warm_up_seconds
        )
        verdict = self._link.begin_episode(index)
        if not verdict.accepted:
            raise InputError(
                "the arm's pose",
                got=verdict.detail,
                expected="a pose from which an episode can begin",
                fix="Move the arm to where the demonstrations began (it has no torque).",
            )
        # Frames from before the arm was ready are not used: they may show the scene before it was set up again.
        self._began_at = started = time.monotonic()
        self._observer.on_episode_start(index, instruction)
        outcome, ended_by = None, ""
        next_poll = next_step = started
        while not ended_by:
            self._link.wait(CYCLE_SECONDS)
            now = time.monotonic()
            measurement = self._heartbeat(now)
            ended_by = self._handle_operator_commands()
            frames, joints, joints_time = self._observe(now)
            self._take_decision()
            if measurement is not None and frames is not None and measurement.state != "stopped":
                self._request_decision(now, measurement, frames, joints, joints_time)
            if self._decisions.busy_seconds > self._settings.decision_seconds:
                raise _hung_error(self._decisions.busy_seconds)
            if now >= next_step and frames is not None:
                next_step = max(next_step + self._rules.period, now - self._rules.period)
                target, state = (measurement.target, measurement.state) if measurement else (None, "ready")
                view = StepSnapshot(joints_time, index, self._instruction, frames, joints, target, state)
                self._observer.on_step(view)
            if end_condition is not None and now >= next_poll:
                next_poll = now + POLL_SECONDS
                outcome = end_condition()
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

    def with_decision_metrics(self, metrics: LoopMetrics) -> LoopMetrics:
        """Return the loop's metrics with those of the decisions."""
        return dataclasses.replace(
            metrics,
            decisions=self._durations.count,
            decision_p50_ms=quantile_ms(self._durations, 0.5),
            decision_p99_ms=quantile_ms(self._durations, 0.99),
        )

    def _reset_state(self, index: int, instruction: str) -> None:
        self._index, self._instruction = index, instruction
        # A decision that is running was asked for by another episode.
        self._generation += 1
        self._sequence, self._stopped_at, self._last_heartbeat = -1, math.inf, -math.inf
        self._refused_since = math.inf
        self._hold_reason, self._reset_pending = "", False
        self._sent_at = self._began_at = -math.inf
        self._holds: Counter[str] = Counter()
        self._refusal_counts: Counter[str] = Counter()

    def _heartbeat(self, now: float) -> Measurement | None:
        """Send a sign of life, receive what the control process reports, and pass it on."""
        if now - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._link.send_heartbeat()
        measurement = self._link.latest()
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
                        fix="Move the arm near to where the demonstrations began, or use a ramp (start=ramp).",
                    )
        return measurement

    def _handle_operator_commands(self) -> str:
        for command, text in self._operator_commands.take_all():
            if command == "stop":
                self._link.stop(text)
            elif command == "rearm":
                self._link.rearm()
                self._stopped_at = math.inf
            elif command == "instruction":
                self._link.drop()
                self._generation += 1
                self._instruction = text
                self._reset_pending = True
            else:
                return "asked"
        return ""

    def _observe(self, now: float) -> tuple[dict[str, TimestampedFrame] | None, np.ndarray, float]:
        """Return frames, joints [A] and when these were measured; no frames if they may not be used for a decision."""
        found = self._link.joints()
        if found is None:
            return None, np.zeros(0), now
        joints, joints_time = found
        try:
            frames = self._cameras.latest(joints, now)
            if now - joints_time > MAX_JOINTS_AGE:
                raise ObservationRefused("joints_age", f"the joints were measured {now - joints_time:.3f} s ago")
        except ObservationRefused as refusal:
            self._refused_since = min(self._refused_since, now)
            if self._hold_reason != refusal.reason:
                self._refusal_counts[refusal.reason] += self._hold_reason == ""
                if refusal.reason in IMMEDIATE_HOLD_REASONS or now - self._refused_since > MAX_REFUSED_SECONDS:
                    self._hold_reason = refusal.reason
                    self._link.hold(refusal.reason, str(refusal))
            return None, joints, joints_time
        self._refused_since, self._hold_reason = math.inf, ""
        return frames, joints, joints_time

    def _request_decision(
        self,
        now: float,
        measurement: Measurement,
        frames: dict[str, TimestampedFrame],
        joints: np.ndarray,
        joints_time: float,
    ) -> None:
        """Ask for a decision if one is due, none is running, and the governor has checked the last chunk."""
        if self._decisions.is_busy:
            return
        if self._reset_pending:
            instruction = self._instruction
            self._reset_pending = False
            self._decisions.submit(None, lambda: self._chunk_policy.reset(instruction))
            return
        if self._link.last_judged_sequence < self._sequence or measurement.time <= self._sent_at:
            return
        contract, period = self._chunk_policy.contract, self._rules.period
        lead = max(
            (contract.chunk - contract.execute) * period, 1.5 * self._typical_decision_seconds + 2 * self._rules.tick
        )
        left = measurement.remaining * period - (now - measurement.time)
        observed = min(joints_time, oldest_capture_time(frames))
        if left > lead or observed <= self._began_at:
            return
        observation = _observation(frames, joints)
        label = (self._generation, observed)
        self._decisions.submit(label, lambda: self._chunk_policy.decide(observation))

    def _take_decision(self) -> None:
        decision = self._decisions.take_result()
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
            raise WorldError(f"the policy gave a {type(actions).__name__} instead of an array")
        self._sequence += 1
        chunk = ActionChunk(self._rules.session, self._index, self._sequence, observed, self._rules.period, actions)
        self._link.send(chunk)
        self._sent_at = time.monotonic()
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
    return WorldError(f"the policy has given no answer for {seconds:.1f} s; the arm is held")


def _policy_error(error: BaseException) -> BaseException:
    """Return what to raise for an error in the policy's thread: our own as it is, others as a WorldError."""
    if isinstance(error, SaccadeError) or not isinstance(error, Exception):
        return error
    failure = WorldError(f"the policy failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
