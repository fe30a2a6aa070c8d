"""The session's link to the control process: it starts the process, sends requests and collects what it reports."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ..arm import Arm, ArmDescription
from ..governor.chunk import ActionChunk
from ..governor.outputs import Event, GovernorVerdict
from ..governor.rules import Rules
from .channel import DTYPE_KINDS, Channel, ChannelClosed
from .loop import LoopSettings
from .loop_metrics import LoopMetrics
from .messages import (
    ArmConnected,
    ArmRearmed,
    BeginEpisode,
    ChunkChecked,
    CloseSession,
    ControlFailed,
    ControlMessage,
    DropQueue,
    EndEpisode,
    EpisodeBegun,
    EpisodeEnded,
    EventsReported,
    GovernorStarted,
    Heartbeat,
    HoldArm,
    InputRefused,
    LoopEnded,
    Measurement,
    Message,
    RearmArm,
    ReportFault,
    SessionMessage,
    StartGovernor,
    StopArm,
    SubmitChunk,
)
from .process import control_process

CONNECT_SECONDS = 120.0
"""Timeout for the arm to connect: importing a driver alone takes many seconds on a busy machine."""

ANSWER_SECONDS = 10.0
MAX_KEPT_EVENTS = 10_000


class ControlLink:
    """The session's end of the control process; use it from one thread.

    Calls raise WorldError once the process has ended.

    Attributes:
        description: The arm, as it was found when it was connected.
        settings: How the loop runs.
    """

    description: ArmDescription

    def __init__(self, process: BaseProcess, channel: Channel, settings: LoopSettings) -> None:
        self._process, self._channel, self.settings = process, channel, settings
        self._answers: deque[Message] = deque()
        self._verdicts: deque[tuple[int, GovernorVerdict]] = deque(maxlen=MAX_KEPT_EVENTS)
        self._events: deque[Event] = deque(maxlen=MAX_KEPT_EVENTS)
        self._measurement: Measurement | None = None
        self._joints: tuple[np.ndarray, float] | None = None
        self._last_judged_sequence = -1

    @classmethod
    def start(cls, make_arm: Callable[[], Arm], settings: LoopSettings | None = None) -> Self:
        """Start the process, which builds the arm, connects it with its torque off, and describes it.

        Args:
            make_arm: Builds the arm in the control process. It is pickled: a function of a module, or a partial of one.
            settings: How the loop runs.

        Raises:
            InputError: The arm is not what it should be.
            WorldError: The arm or the process fails.
        """
        settings = settings or LoopSettings()
        session_socket, control_socket = Channel.pair()
        # Spawned: a fork would copy the threads, locks and open devices of this process.
        process = multiprocessing.get_context("spawn").Process(
            target=control_process, args=(control_socket, make_arm, settings), name="saccade control", daemon=True
        )
        process.start()
        control_socket.close()
        link = cls(process, Channel(session_socket), settings)
        try:
            link.description = link._wait_for_answer(ArmConnected, CONNECT_SECONDS).description
        except BaseException:
            link._end_process()
            raise
        return link

    def start_governor(self, rules: Rules, record: Path | None = None) -> None:
        """Start the loop.

        Args:
            rules: What the governor decides by.
            record: A new file for the flight record.

        Raises:
            InputError: The file exists or cannot be written.
        """
        self._send(StartGovernor(rules, record))
        self._wait_for_answer(GovernorStarted)

    def begin_episode(self, episode: int) -> GovernorVerdict:
        """Make the pose the goal, switch torque on and accept chunks; a rejection leaves the torque as it is."""
        self._send(BeginEpisode(episode))
        verdict = self._wait_for_answer(EpisodeBegun).verdict
        self._last_judged_sequence = -1
        self._verdicts.clear()
        self._measurement = None
        return verdict

    def end_episode(self, *, release: bool = False) -> None:
        """Hold, and accept no more chunks; `release` switches torque off, and the arm may drop."""
        self._send(EndEpisode(release))
        self._wait_for_answer(EpisodeEnded)

    def send(self, chunk: ActionChunk) -> None:
        """Send a chunk; the governor checks it at its next tick (see `take_verdicts`)."""
        if chunk.actions.dtype.kind not in DTYPE_KINDS:
            self._send(ReportFault("dtype", f"actions of type {chunk.actions.dtype}"))
            return
        self._send(SubmitChunk(chunk))

    def send_heartbeat(self) -> None:
        """Send a sign of life; due every `heartbeat_seconds` of the settings while an episode runs."""
        self._send(Heartbeat())
        self.poll()

    def stop(self, reason: str) -> None:
        """Stop the arm, latched until `rearm`."""
        self._send(StopArm(reason))

    def hold(self, reason: str, detail: str = "") -> None:
        """Hold the arm until a chunk arrives that was decided from a later observation."""
        self._send(HoldArm(reason, detail))

    def drop(self) -> None:
        """Drop the queued steps, because the instruction has changed."""
        self._send(DropQueue())

    def rearm(self) -> GovernorVerdict:
        """End a stop."""
        self._send(RearmArm())
        return self._wait_for_answer(ArmRearmed).verdict

    def latest(self) -> Measurement | None:
        """Return the newest measurement, None before the first tick."""
        self.poll()
        return self._measurement

    def joints(self) -> tuple[np.ndarray, float] | None:
        """Return the newest joints [A] that were read and when, in steady seconds; None before the first."""
        self.poll()
        return self._joints

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def take_verdicts(self) -> list[tuple[int, GovernorVerdict]]:
        """Return the sequence numbers of the chunks that were checked since the last call, with their verdicts."""
        verdicts = list(self._verdicts)
        self._verdicts.clear()
        return verdicts

    @property
    def last_judged_sequence(self) -> int:
        """The highest sequence number of this episode that the governor has checked, -1 before the first."""
        return self._last_judged_sequence

    @property
    def process_id(self) -> int | None:
        return self._process.pid

    def poll(self) -> None:
        """Receive what the process has sent; WorldError if it has ended."""
        for message in self._channel.receive():
            self._handle_message(message)
        if self._channel.close_reason is not None:
            raise self._process_ended_error()

    def wait(self, seconds: float) -> None:
        """Wait until the process sends something, at most this long."""
        self._channel.wait(seconds)

    def close(self, *, release: bool = False) -> LoopMetrics | None:
        """Hold and end the process; return the loop's metrics, None if it ended before or had no rules yet."""
        metrics = None
        try:
            self._send(CloseSession(release))
            metrics = self._wait_for_answer(LoopEnded).metrics
        except (SaccadeError, ChannelClosed):
            pass
        self._end_process()
        return metrics

    def _handle_message(self, message: Message) -> None:
        match message:
            case Measurement():
                self._measurement = message
                if message.joints is not None:
                    self._joints = message.joints, message.time
                self._events += message.events
            case ChunkChecked(sequence, verdict):
                self._last_judged_sequence = max(self._last_judged_sequence, sequence)
                self._verdicts.append((sequence, verdict))
            case EventsReported(events):
                self._events += events
            case InputRefused(what, got, expected, fix):
                raise InputError(what, got=got, expected=expected, fix=fix)
            case ControlFailed(error):
                raise WorldError(error)
            case _:
                self._answers.append(message)

    def _wait_for_answer[Answer: ControlMessage](self, kind: type[Answer], seconds: float = ANSWER_SECONDS) -> Answer:
        """Return the next answer of a type; what else arrives meanwhile is handled, other answers are dropped."""
        ends = time.monotonic() + seconds
        while True:
            for message in self._channel.receive():
                self._handle_message(message)
            while self._answers:
                answer = self._answers.popleft()
                if isinstance(answer, kind):
                    return answer
            if self._channel.close_reason is not None:
                raise self._process_ended_error()
            if time.monotonic() > ends:
                raise WorldError(f"the control process gave no answer ({kind.__name__}) within {seconds:g} s")
            self._channel.wait(0.1)

    def _send(self, message: SessionMessage) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed:
            # Its last message tells why it ended.
            for last in self._channel.receive():
                self._handle_message(last)
            raise self._process_ended_error() from None

    def _process_ended_error(self) -> WorldError:
        self._process.join(timeout=2.0)
        code = self._process.exitcode
        how = "without an exit code" if code is None else f"with code {code}"
        return WorldError(f"the control process ended {how}; the arm keeps its last goal")

    def _end_process(self) -> None:
        self._channel.close()
        self._process.join(timeout=5.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=5.0)
