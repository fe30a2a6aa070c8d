"""The control process and the session's link to it.

The process owns the arm from the first byte on the bus to the last. It is told what to do through a channel, and holds
the arm when that closes or falls silent; see `loop` for what it does at each tick.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...errors import InputError, SaccadeError, WorldError
from ..arm import Arm, ArmDescription
from ..governor.chunk import ActionChunk
from ..governor.governor import Governor
from ..governor.recorder import FlightRecorder, RecordedGovernor
from ..governor.rules import Rules
from ..governor.verdict import Event, GovernorVerdict
from .channel import Channel, ChannelClosed
from .loop import ControlLoop, LoopSettings, Signals
from .loop_metrics import LoopMetrics

CONNECT_SECONDS = 120.0
"""How long an arm may take to be there: importing a driver alone takes many seconds on a busy machine."""

ANSWER_SECONDS = 10.0
MAX_KEPT_EVENTS = 10_000
NICENESS = -10
REALTIME_PRIORITY = 10


@dataclass(frozen=True)
class Measurement:
    """What the control process saw and did in its last tick.

    `time`: steady seconds. `joints`: float64 [A], None where the bus gave none. `target`: what the motors were told,
    float64 [A]. `state`, `reason`: the governor's. `remaining`: steps queued. `sequence`: the newest chunk taken.
    """

    time: float
    joints: np.ndarray | None
    target: np.ndarray | None
    state: str
    reason: str
    remaining: int
    sequence: int


class ControlLink:
    """The session's end of the control process; not for more than one thread.

    `events` collects what happened there; `take_events` empties it. Calls raise WorldError once the process is gone.
    """

    description: ArmDescription

    def __init__(self, process: Any, channel: Channel, settings: LoopSettings) -> None:
        self._process, self._channel, self.settings = process, channel, settings
        self._answers: deque[dict[str, Any]] = deque()
        self._verdicts: deque[tuple[int, GovernorVerdict]] = deque(maxlen=MAX_KEPT_EVENTS)
        self._events: deque[Event] = deque(maxlen=MAX_KEPT_EVENTS)
        self._measurement: Measurement | None = None
        self._joints: tuple[np.ndarray, float] | None = None
        self._last_judged_sequence = -1

    @classmethod
    def start(cls, make_arm: Callable[[], Arm], settings: LoopSettings | None = None) -> Self:
        """Start the process, which builds the arm, connects it with its torque off, and says what it found.

        `make_arm` must pass to another process (a function of a module, a partial of one). Raises InputError for what
        does not fit and WorldError where the arm or the process fails.
        """
        settings = settings or LoopSettings()
        session_socket, control_socket = Channel.pair()
        # Spawned, as a copy of this process would bring along its threads, locks and open devices.
        process = multiprocessing.get_context("spawn").Process(
            target=control_process, args=(control_socket, make_arm, settings), name="saccade control", daemon=True
        )
        process.start()
        control_socket.close()
        link = cls(process, Channel(session_socket), settings)
        try:
            answer = link._wait_for_answer("connected", CONNECT_SECONDS)
            link.description = ArmDescription.from_json(json.dumps(answer["description"]), "the arm")
        except BaseException:
            link._end_process()
            raise
        return link

    def start_governor(self, rules: Rules, record: Path | None = None) -> None:
        """Give the process its rules and the file for its flight record; its loop runs from here on."""
        self._send_message(
            {"kind": "rules", "rules": rules.to_json(), "record": None if record is None else str(record)}
        )
        self._wait_for_answer("ready", ANSWER_SECONDS)

    def begin_episode(self, episode: int) -> GovernorVerdict:
        """Make the pose the goal, switch torque on, take chunks from now on; a refusal leaves the torque as it is."""
        self._send_message({"kind": "begin", "episode": episode})
        answer = self._wait_for_answer("begun", ANSWER_SECONDS)
        self._last_judged_sequence = -1
        self._verdicts.clear()
        self._measurement = None
        return GovernorVerdict(answer["accepted"], answer["reason"], answer["detail"])

    def end_episode(self, *, release: bool = False) -> None:
        """Hold, and take no more chunks; `release` switches torque off, and the arm may drop."""
        self._send_message({"kind": "end", "release": release})
        self._wait_for_answer("ended", ANSWER_SECONDS)

    def send(self, chunk: ActionChunk) -> None:
        """Send a chunk; the governor judges it at its next tick (see `verdicts`)."""
        names = ("session", "episode", "sequence", "observed", "period")
        fields = {name: getattr(chunk, name) for name in names}
        if chunk.actions.dtype.kind not in "fiub":
            self._send_message({"kind": "fault", "reason": "dtype", "detail": f"actions of type {chunk.actions.dtype}"})
            return
        self._send_message({"kind": "chunk", **fields}, chunk.actions)

    def send_heartbeat(self) -> None:
        """Give a sign of life; owed every `heartbeat_seconds` of the settings while an episode runs."""
        self._send_message({"kind": "beat"})
        self.poll()

    def stop(self, reason: str) -> None:
        """Stop the arm, latched until `rearm`."""
        self._send_message({"kind": "stop", "reason": reason})

    def hold(self, reason: str, detail: str = "") -> None:
        """Hold the arm until a chunk arrives that was decided from a later observation."""
        self._send_message({"kind": "hold", "reason": reason, "detail": detail})

    def drop(self) -> None:
        """Forget what is queued, as the instruction has changed."""
        self._send_message({"kind": "drop"})

    def rearm(self) -> GovernorVerdict:
        """End a stop."""
        self._send_message({"kind": "rearm"})
        answer = self._wait_for_answer("rearmed", ANSWER_SECONDS)
        return GovernorVerdict(answer["accepted"], detail=answer["detail"])

    def latest(self) -> Measurement | None:
        """Return the newest measurement, None before the first tick."""
        self.poll()
        return self._measurement

    def joints(self) -> tuple[np.ndarray, float] | None:
        """Return the newest joints [A] that were read, and when; None before the first."""
        self.poll()
        return self._joints

    def take_events(self) -> list[Event]:
        """Return what happened since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def take_verdicts(self) -> list[tuple[int, GovernorVerdict]]:
        """Return the sequence numbers of the chunks judged since the last call, with their verdicts."""
        verdicts = list(self._verdicts)
        self._verdicts.clear()
        return verdicts

    @property
    def last_judged_sequence(self) -> int:
        """The highest sequence number of this episode that the governor has judged, -1 before the first."""
        return self._last_judged_sequence

    def poll(self) -> None:
        """Take in what the process has said; WorldError where it is gone."""
        for message, _ in self._channel.receive():
            self._handle_message(message)
        if self._channel.close_reason is not None:
            raise self._process_ended_error()

    def wait(self, seconds: float) -> None:
        """Wait until the process says something, but not longer than that."""
        self._channel.wait(seconds)

    def close(self, *, release: bool = False) -> LoopMetrics | None:
        """Hold, end the process and return the loop's figures; None where it was gone before or had no rules yet."""
        figures = None
        try:
            self._send_message({"kind": "close", "release": release})
            figures = LoopMetrics(**self._wait_for_answer("figures", ANSWER_SECONDS)["figures"])
        except (SaccadeError, ChannelClosed):
            pass
        self._end_process()
        return figures

    def kill_process(self) -> None:
        """End the control process at once, as a crash would; for those who test what happens then."""
        self._process.kill()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def _handle_message(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "measurement":
            joints = None if message["joints"] is None else np.array(message["joints"])
            target = None if message["target"] is None else np.array(message["target"])
            names = ("time", "state", "reason", "remaining", "sequence")
            self._measurement = Measurement(joints=joints, target=target, **{name: message[name] for name in names})
            if joints is not None:
                self._joints = joints, message["time"]
        elif kind == "verdict":
            self._last_judged_sequence = max(self._last_judged_sequence, message["sequence"])
            verdict = GovernorVerdict(message["accepted"], message["reason"], message["detail"])
            self._verdicts.append((message["sequence"], verdict))
        elif kind == "refused":
            raise _refusal_error(message)
        elif kind != "event":
            self._answers.append(message)
        self._events += [Event(*event) for event in message.get("events", ())]

    def _wait_for_answer(self, kind: str, seconds: float) -> dict[str, Any]:
        ends = time.monotonic() + seconds
        while True:
            for message, _ in self._channel.receive():
                self._handle_message(message)
            while self._answers:
                answer = self._answers.popleft()
                if answer["kind"] == kind:
                    return answer
            if self._channel.close_reason is not None:
                raise self._process_ended_error()
            if time.monotonic() > ends:
                raise WorldError(f"the control process gave no answer ({kind}) within {seconds:g} s")
            self._channel.wait(0.1)

    def _send_message(self, message: dict[str, Any], array: np.ndarray | None = None) -> None:
        try:
            self._channel.send(message, array)
        except ChannelClosed:
            # What it said last tells why it went.
            for last_reply, _ in self._channel.receive():
                self._handle_message(last_reply)
            raise self._process_ended_error() from None

    def _process_ended_error(self) -> WorldError:
        self._process.join(timeout=2.0)
        code = self._process.exitcode
        how = "without a word" if code is None else f"with code {code}"
        return WorldError(f"the control process ended {how}; the arm keeps its last goal")

    def _end_process(self) -> None:
        self._channel.close()
        self._process.join(timeout=5.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(timeout=5.0)


def control_process(end: socket.socket, make_arm: Callable[[], Arm], settings: LoopSettings) -> None:
    """Be the control process: connect, say what was found, wait for rules, run the loop, let go of the arm."""
    signals = Signals()
    channel = Channel(end)
    arm: Arm | None = None
    recorder: FlightRecorder | None = None
    try:
        arm = make_arm()
        description = arm.connect()
        channel.send({"kind": "connected", "description": json.loads(description.to_json())})
        message = _wait_for_rules(channel, signals)
        if message is None:
            return
        rules = Rules.from_json(message["rules"], "rules")
        if settings.raise_priority:
            # Before the recorder's thread is there, which inherits it.
            with contextlib.suppress(OSError):
                os.nice(NICENESS)
        if message["record"] is not None:
            recorder = FlightRecorder(Path(message["record"]), rules)
        governor = RecordedGovernor(Governor(rules), recorder)
        failure = (lambda: recorder.failure) if recorder is not None else (lambda: None)
        loop = ControlLoop(arm, description, governor, channel, settings, signals, recorder_failure=failure)
        if settings.raise_priority:
            _raise_priority()
        # What was built so far stays: the collector need not walk through it between two ticks.
        gc.collect()
        gc.freeze()
        channel.send({"kind": "ready"})
        loop.run()
        channel.send({"kind": "figures", "figures": vars(loop.figures())})
    except ChannelClosed:
        return
    except SaccadeError as error:
        _send_refusal(channel, error)
    finally:
        channel.drain(1.0)
        if recorder is not None:
            recorder.close()
        if arm is not None:
            arm.close()


def _wait_for_rules(channel: Channel, signals: Signals) -> dict[str, Any] | None:
    """Wait for the rules; None where the session leaves, or is made to leave, before it gives any."""
    while not signals.received:
        channel.wait(0.1)
        for message, _ in channel.receive():
            return message if message["kind"] == "rules" else None
        if channel.close_reason is not None:
            return None
    return None


def _raise_priority() -> None:
    """Ask for a real-time priority for this thread, the loop's; without the right to it all stays as it is.

    The loop sleeps while it waits for the bus, so that it cannot starve whoever is to answer.
    """
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))


def _send_refusal(channel: Channel, error: SaccadeError) -> None:
    last_reply: dict[str, Any] = {"kind": "refused", "text": str(error)}
    if isinstance(error, InputError):
        last_reply |= {"what": error.what, "got": str(error.got), "expected": str(error.expected), "fix": error.fix}
    try:
        channel.send(last_reply)
    except ChannelClosed:
        return


def _refusal_error(message: dict[str, Any]) -> SaccadeError:
    if "what" in message:
        return InputError(message["what"], got=message["got"], expected=message["expected"], fix=message["fix"])
    return WorldError(message["text"])
