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
from ..control.loop_figures import Durations, LoopFigures, milliseconds
from ..control.process import ControlLink, Measurement
from ..decider import Decider
from ..governor.chunk import Chunk
from ..governor.rules import Rules
from ..governor.schedule import Schedule
from .cameras import CameraWatch, Frame, ObservationRefused, oldest
from .decision_thread import Decision, DecisionThread
from .orders import Orders
from .summary import EpisodeSummary, Observer, StepView

if TYPE_CHECKING:
    from .settings import SessionSettings

CYCLE = 0.005
"""Seconds that the session waits at most before it looks again."""

BEAT_SECONDS = 0.04
POLL_SECONDS = 0.1
JOINTS_AGE = 0.1
"""Seconds after which measured joints are not decided from any more."""

REFUSED_SECONDS = 0.2
"""So long nothing may be seen before the arm is held; what shows a wrong picture is held at once."""

AT_ONCE = ("camera_frozen", "camera_blank", "camera_size")
FIRST_SIGHT_SECONDS = 10.0


def see(link: ControlLink, cameras: CameraWatch) -> dict[str, Any]:
    """Return a first observation, as soon as joints and pictures are there; WorldError where they do not come."""
    ends = time.monotonic() + FIRST_SIGHT_SECONDS
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
            raise WorldError(f"nothing to decide from within {FIRST_SIGHT_SECONDS:g} s: {why}")
        link.wait(CYCLE)


def call_within(link: ControlLink, decisions: DecisionThread, call: Callable[[], Any], seconds: float) -> Decision:
    """Return what came of a call of the decider's, and look after the link meanwhile.

    Raises what the call raised, and WorldError where it takes longer than that.
    """
    label = object()
    decisions.ask(label, call)
    # What was asked for before, by an episode that is over, comes first and is nothing to anybody.
    while (decision := decisions.take()) is None or decision.label is not label:
        link.poll()
        link.wait(CYCLE)
        if decisions.busy_seconds > seconds:
            raise _hung(decisions.busy_seconds)
    if decision.error is not None:
        raise _failed(decision.error)
    return decision


class Conductor:
    """Runs one episode after the other over one link, with one decider."""

    def __init__(
        self,
        decider: Decider,
        link: ControlLink,
        cameras: CameraWatch,
        decisions: DecisionThread,
        rules: Rules,
        settings: SessionSettings,
        observer: Observer,
        orders: Orders,
        usual_seconds: float,
    ) -> None:
        self._decider, self._link, self._cameras, self._decisions = decider, link, cameras, decisions
        self._rules, self._settings, self._observer, self._orders = rules, settings, observer, orders
        self._usual_seconds = usual_seconds
        self._durations = Durations()
        self._generation = 0
        self._begin(0, "")

    def run(self, index: int, instruction: str, seconds: float, ended: Callable[[], Any] | None) -> EpisodeSummary:
        """Run an episode until its end condition, its time, an order or a stop ends it.

        Raises InputError where the first command is refused as too far from the pose, WorldError where the decider
        hangs or the control process is gone, and what decider and callbacks raise.
        """
        self._begin(index, instruction)
        call_within(
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
        self._observer.episode_began(index, instruction)
        outcome, ended_by = None, ""
        next_poll = next_step = started
        while not ended_by:
            self._link.wait(CYCLE)
            now = time.monotonic()
            measurement = self._attend(now)
            ended_by = self._obey_orders()
            frames, joints, taken = self._look(now)
            self._take_decision()
            if measurement is not None and frames is not None and measurement.state != "stopped":
                self._let_decide(now, measurement, frames, joints, taken)
            if self._decisions.busy_seconds > self._settings.decision_seconds:
                raise _hung(self._decisions.busy_seconds)
            if now >= next_step and frames is not None:
                next_step = max(next_step + self._rules.period, now - self._rules.period)
                target, state = (measurement.target, measurement.state) if measurement else (None, "ready")
                view = StepView(taken, index, self._instruction, frames, joints, target, state)
                self._observer.stepped(view)
            if ended is not None and now >= next_poll:
                next_poll = now + POLL_SECONDS
                outcome = ended()
                ended_by = ended_by or ("condition" if outcome is not None else "")
            ended_by = ended_by or self._stopped(now, measurement)
            ended_by = ended_by or ("time" if now - started >= seconds else "")
        return EpisodeSummary(
            index=index,
            instruction=self._instruction,
            ended_by=ended_by,
            seconds=time.monotonic() - started,
            decisions=self._sequence + 1,
            outcome=outcome,
            holds=dict(self._holds),
            refused_observations=dict(self._refused),
        )

    def with_decisions(self, figures: LoopFigures) -> LoopFigures:
        """Return the loop's figures with those of the decisions."""
        return dataclasses.replace(
            figures,
            decisions=self._durations.count,
            decision_p50_ms=milliseconds(self._durations, 0.5),
            decision_p99_ms=milliseconds(self._durations, 0.99),
        )

    def _begin(self, index: int, instruction: str) -> None:
        self._index, self._instruction = index, instruction
        # Whatever is under way was asked for by another episode.
        self._generation += 1
        self._sequence, self._stopped_at, self._beaten = -1, math.inf, -math.inf
        self._refused_since = math.inf
        self._held_for, self._reset_asked = "", False
        self._sent: Chunk | None = None
        self._sent_at = self._began_at = -math.inf
        self._holds: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._mirror = Schedule(self._rules.aggregation, self._rules.freshness)

    def _attend(self, now: float) -> Measurement | None:
        """Give a sign of life, take in what the control process tells, and pass it on."""
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            self._link.beat()
        measurement = self._link.latest()
        for sequence, verdict in self._link.take_verdicts():
            if verdict.accepted and self._sent is not None and sequence == self._sent.sequence:
                self._mirror.put(self._sent, now)
        for event in self._link.take_events():
            self._observer.happened(event)
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

    def _obey_orders(self) -> str:
        for order, what in self._orders.take():
            if order == "stop":
                self._link.stop(what)
            elif order == "rearm":
                self._link.rearm()
                self._stopped_at = math.inf
            elif order == "instruction":
                self._link.drop()
                self._mirror.drop()
                self._generation += 1
                self._instruction = what
                self._reset_asked = True
            else:
                return "asked"
        return ""

    def _look(self, now: float) -> tuple[dict[str, Frame] | None, np.ndarray, float]:
        """Return frames, joints and when these were taken; no frames where nothing may be decided from them."""
        found = self._link.joints()
        if found is None:
            return None, np.zeros(0), now
        joints, taken = found
        try:
            frames = self._cameras.latest(joints, now)
            if now - taken > JOINTS_AGE:
                raise ObservationRefused("joints_age", f"the joints were measured {now - taken:.3f} s ago")
        except ObservationRefused as refusal:
            self._refused_since = min(self._refused_since, now)
            if self._held_for != refusal.reason:
                self._refused[refusal.reason] += self._held_for == ""
                if refusal.reason in AT_ONCE or now - self._refused_since > REFUSED_SECONDS:
                    self._held_for = refusal.reason
                    self._link.hold(refusal.reason, str(refusal))
            return None, joints, taken
        self._refused_since, self._held_for = math.inf, ""
        return frames, joints, taken

    def _let_decide(
        self, now: float, measurement: Measurement, frames: dict[str, Frame], joints: np.ndarray, taken: float
    ) -> None:
        """Ask for a decision where one is due and none is under way or on its way to the governor."""
        if self._decisions.is_busy:
            return
        if self._reset_asked:
            instruction = self._instruction
            self._reset_asked = False
            self._decisions.ask(None, lambda: self._decider.reset(instruction))
            return
        if self._link.judged < self._sequence or measurement.time <= self._sent_at:
            return
        contract, period = self._decider.contract, self._rules.period
        lead = max((contract.chunk - contract.execute) * period, 1.5 * self._usual_seconds + 2 * self._rules.tick)
        left = measurement.remaining * period - (now - measurement.time)
        observed = min(taken, oldest(frames))
        if left > lead or observed <= self._began_at:
            return
        observation = _observation(frames, joints)
        label = (self._generation, observed)
        if self._settings.real_time_chunking:
            leftover = self._mirror.leftover(now)
            delay = math.ceil(self._usual_seconds / period)
            self._decisions.ask(label, lambda: self._decider.continue_chunk(observation, leftover, delay))
        else:
            self._decisions.ask(label, lambda: self._decider.decide(observation))

    def _take_decision(self) -> None:
        decision = self._decisions.take()
        if decision is None:
            return
        if decision.error is not None:
            raise _failed(decision.error)
        if decision.label is None:
            return
        generation, observed = decision.label
        self._durations.add(decision.seconds)
        self._usual_seconds += 0.1 * (decision.seconds - self._usual_seconds)
        if generation != self._generation:
            return
        actions = decision.actions
        if not isinstance(actions, np.ndarray):
            raise WorldError(f"the decider gave a {type(actions).__name__} instead of an array")
        self._sequence += 1
        chunk = Chunk(self._rules.session, self._index, self._sequence, observed, self._rules.period, actions)
        self._link.send(chunk)
        self._sent, self._sent_at = chunk, time.monotonic()
        self._observer.decided(chunk, decision.seconds)

    def _stopped(self, now: float, measurement: Measurement | None) -> str:
        if measurement is None or measurement.state != "stopped":
            self._stopped_at = math.inf
            return ""
        self._stopped_at = min(self._stopped_at, now)
        if now - self._stopped_at >= self._settings.stopped_seconds:
            return f"stopped: {measurement.reason}"
        return ""


def _observation(frames: dict[str, Frame], joints: np.ndarray) -> dict[str, Any]:
    pictures = {name: frame.picture for name, frame in frames.items()}
    return {"pixels": pictures, "agent_pos": joints.astype(np.float32)}


def _hung(seconds: float) -> WorldError:
    return WorldError(f"the decider has given no answer for {seconds:.1f} s; the arm is held")


def _failed(error: BaseException) -> BaseException:
    """Return what to raise for an error in the decisions' thread: ours as it is, others as the world's."""
    if isinstance(error, SaccadeError) or not isinstance(error, Exception):
        return error
    failure = WorldError(f"the decider failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
