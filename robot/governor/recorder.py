"""The flight recorder: every input and output of the governor as a JSON line, and the replay that checks them.

The file survives a crash up to the last whole line. Numbers are written so that they read back bit for bit.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .chunk import CHUNK_HEADER, ActionChunk
from .governor import Governor
from .outputs import GovernorVerdict, MotorCommand
from .rules import Rules

VERSION = 1
CALLS = ("begin", "end", "submit", "fault", "stop", "hold", "drop", "rearm", "tick")
MAX_RECORDED_NUMBERS = 1 << 16
"""Chunks of the wrong shape with more numbers are recorded by their shape alone."""

MAX_PENDING_LINES = 10_000
"""Lines that may wait for the disk; more mean that the disk does not accept them any more."""


class FlightRecorder:
    """Writes the calls of a governor and their answers, without ever making the control loop wait for the disk.

    Its own thread only writes and flushes each line: it may have a lower priority than the loop, which must not wait
    for it to release Python's lock.

    Args:
        path: A new file.
        rules: The governor's rules, the first line.

    Attributes:
        failure: Why it cannot write, None while it can.

    Raises:
        InputError: The file exists or cannot be created.
    """

    def __init__(self, path: Path, rules: Rules) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("x", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"flight record {path}", got=error.strerror, expected="a new file", fix="Choose another folder."
            ) from None
        self.path = path
        self.failure: str | None = None
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_PENDING_LINES)
        self._thread = threading.Thread(target=self._write, name="flight recorder", daemon=True)
        self._thread.start()
        self.write_line({"call": "rules", "version": VERSION, "rules": json.loads(rules.to_json())})

    def write_line(self, line: dict[str, Any]) -> None:
        """Queue a line for the disk."""
        try:
            self._lines.put_nowait(json.dumps(line, default=_to_json_value, separators=(",", ":")) + "\n")
        except queue.Full:
            self.failure = self.failure or f"{MAX_PENDING_LINES} lines wait for the disk"

    def close(self) -> None:
        """Write the queued lines and close the file."""
        try:
            self._lines.put(None, timeout=1.0)
        except queue.Full:
            return
        self._thread.join(timeout=5.0)

    def _write(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._file.write(line)
                self._file.flush()
        except (OSError, ValueError) as error:
            self.failure = str(error)
        finally:
            try:
                self._file.close()
            except OSError as error:
                self.failure = str(error)


class RecordedGovernor:
    """A governor whose calls and answers are recorded; it has the same methods.

    Args:
        governor: The governor; also an attribute.
        recorder: Where to record; None records nothing.
    """

    def __init__(self, governor: Governor, recorder: FlightRecorder | None) -> None:
        self.governor, self._recorder = governor, recorder

    def begin(self, episode: int, measured: np.ndarray, now: float) -> GovernorVerdict:
        verdict = self.governor.begin(episode, measured, now)
        self._record_call({"call": "begin", "episode": episode, "measured": measured, "now": now}, verdict)
        return verdict

    def submit(self, chunk: ActionChunk, now: float) -> GovernorVerdict:
        verdict = self.governor.submit(chunk, now)
        self._record_call({"call": "submit", **_chunk_to_line(chunk), "now": now}, verdict)
        return verdict

    def fault(self, reason: str, detail: str, now: float) -> None:
        self.governor.fault(reason, detail, now)
        self._record_call({"call": "fault", "reason": reason, "detail": detail, "now": now})

    def stop(self, reason: str, now: float) -> None:
        self.governor.stop(reason, now)
        self._record_call({"call": "stop", "reason": reason, "now": now})

    def hold(self, reason: str, detail: str, now: float) -> None:
        self.governor.hold(reason, detail, now)
        self._record_call({"call": "hold", "reason": reason, "detail": detail, "now": now})

    def drop(self, now: float) -> None:
        self.governor.drop(now)
        self._record_call({"call": "drop", "now": now})

    def end(self, now: float) -> None:
        self.governor.end(now)
        self._record_call({"call": "end", "now": now})

    def rearm(self, now: float) -> GovernorVerdict:
        verdict = self.governor.rearm(now)
        self._record_call({"call": "rearm", "now": now}, verdict)
        return verdict

    def tick(
        self, now: float, measured: np.ndarray | None, *, measured_at: float, overran: bool = False
    ) -> MotorCommand:
        command = self.governor.tick(now, measured, measured_at=measured_at, overran=overran)
        if self._recorder is not None:
            line = {"call": "tick", "now": now, "measured": measured, "measured_at": measured_at, "overran": overran}
            line |= {"target": command.target, "state": command.state, "sequence": command.sequence}
            if command.events:
                line["events"] = [[event.kind, event.detail, event.time] for event in command.events]
            self._recorder.write_line(line)
        return command

    def _record_call(self, line: dict[str, Any], verdict: GovernorVerdict | None = None) -> None:
        if self._recorder is not None:
            if verdict is not None:
                line |= {"accepted": verdict.accepted, "reason": verdict.reason}
            self._recorder.write_line(line)


@dataclass(frozen=True)
class ReplayReport:
    """The result of a replay: the number of calls, of ticks among them, and the first differences."""

    calls: int
    ticks: int
    differences: tuple[str, ...]

    @property
    def identical(self) -> bool:
        return not self.differences


def read_flight_record(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a flight record; a last line that a crash cut off is left out.

    Args:
        path: The flight record.

    Raises:
        InputError: The file cannot be read, or is damaged before its end.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"flight record {path}", got=error, expected="a file that a run wrote", fix="Check the path."
        ) from None
    for number, line in enumerate(lines[:-1], start=1):
        try:
            read = json.loads(line)
        except ValueError:
            raise _damaged_record_error(path, f"line {number}, which is no JSON") from None
        if not isinstance(read, dict) or "call" not in read:
            raise _damaged_record_error(path, f"line {number} without a call")
        yield read


def replay_flight_record(path: Path, max_differences: int = 5) -> ReplayReport:
    """Repeat the calls of a flight record on a new governor, and compare its commands and verdicts bit for bit.

    Args:
        path: The flight record.
        max_differences: Stop after so many differences.

    Raises:
        InputError: The file is no flight record of this version, or damaged.
    """
    lines = read_flight_record(path)
    first = next(lines, {})
    if first.get("call") != "rules" or first.get("version") != VERSION:
        raise _damaged_record_error(path, f"a first line without rules of version {VERSION}")
    governor = Governor(Rules.from_json(json.dumps(first["rules"]), str(path)))
    calls, ticks, differences = 0, 0, []
    for number, line in enumerate(lines, start=2):
        if line["call"] not in CALLS:
            continue
        calls += 1
        ticks += line["call"] == "tick"
        try:
            differences += [f"line {number}: {each}" for each in _replay_call(governor, line)]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged_record_error(path, f"line {number}, which is no call ({error!r})") from None
        if len(differences) >= max_differences:
            break
    return ReplayReport(calls, ticks, tuple(differences[:max_differences]))


def _replay_call(governor: Governor, line: dict[str, Any]) -> list[str]:
    """Repeat one recorded call; return how its answer differs from the recorded one."""
    call, now = line["call"], line["now"]
    if call == "tick":
        measured = None if line["measured"] is None else np.array(line["measured"], dtype=np.float64)
        command = governor.tick(now, measured, measured_at=line["measured_at"], overran=line["overran"])
        target = None if command.target is None else command.target.tolist()
        got = (target, command.state, command.sequence)
        wanted = (line["target"], line["state"], line["sequence"])
        return [] if got == wanted else [f"got {got}, recorded {wanted}"]
    verdict = None
    if call == "begin":
        verdict = governor.begin(line["episode"], np.array(line["measured"], dtype=np.float64), now)
    elif call == "submit":
        verdict = governor.submit(_chunk_from_line(line), now)
    elif call in ("fault", "hold"):
        getattr(governor, call)(line["reason"], line["detail"], now)
    elif call == "stop":
        governor.stop(line["reason"], now)
    elif call == "rearm":
        verdict = governor.rearm(now)
    else:
        getattr(governor, call)(now)
    if verdict is not None and (verdict.accepted, verdict.reason) != (line["accepted"], line["reason"]):
        return [f"{call} got {verdict.reason or 'accepted'}, recorded {line['reason'] or 'accepted'}"]
    return []


def _chunk_to_line(chunk: ActionChunk) -> dict[str, Any]:
    actions = chunk.actions
    fields: dict[str, Any] = {"dtype": actions.dtype.str, "shape": list(actions.shape)}
    if actions.dtype.kind == "f" and actions.dtype.itemsize <= 8 and actions.size <= MAX_RECORDED_NUMBERS:
        # float32 is exact in float64, and a copy does not change when the caller changes the array.
        fields["actions"] = actions.astype(np.float64)
    return {**chunk.header(), **fields}


def _chunk_from_line(line: dict[str, Any]) -> ActionChunk:
    shape, dtype = tuple(line["shape"]), np.dtype(line["dtype"] if line["dtype"] != "|O" else "S1")
    if "actions" in line:
        actions = np.array(line["actions"], dtype=np.float64).reshape(shape).astype(dtype)
    else:
        actions = np.broadcast_to(np.zeros((), dtype), shape)
    return ActionChunk(**{name: line[name] for name in CHUNK_HEADER}, actions=actions)


def _to_json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be recorded")


def _damaged_record_error(path: Path, what: str) -> InputError:
    return InputError(
        f"flight record {path}",
        got=what,
        expected="the lines that a run wrote",
        fix="Use another flight record; this file is damaged.",
    )
