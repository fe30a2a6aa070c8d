"""Records of episodes, and the file that keeps them safe when a run is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...disk import report_disk_errors
from ...errors import InputError
from ..perturbation.job import Job, episode_key

if TYPE_CHECKING:
    from ..perturbation.swap import Swap

Outcome = Literal["success", "failure", "error"]


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as it went.

    Attributes:
        suite: Name of the suite.
        task: Name of the task.
        initial_state: Number of the initial state.
        seed: Seed of everything random in the episode.
        instruction: The instruction that the actor got.
        target: Body of the object to pick; None if the task has none.
        picked: Body of the object that was picked first.
        outcome: "error" if the environment or the policy's process failed: it counts as neither success nor failure.
            With a swap, success is what the swap defines.
        steps: Number of steps.
        seconds: Duration of the whole episode.
        decisions: Number of the policy's decisions.
        decision_milliseconds: Median duration of a decision.
        slowest_decision_milliseconds: Longest duration of a decision.
        trajectory: Digest of all actions, to compare two runs bit by bit.
        visual_tokens: Number of visual tokens; known of recorded episodes of a policy that reports its tokens.
        visual_tokens_kept: Number of visual tokens that reached the last layer.
        attempts: How many times the episode was tried.
        error: What failed.
        video: Path of the video, relative to the run folder.
        perturbation: Axis and level, such as "camera=3".
        swap: The swap that was made.
        other: Body of the swap's second object: the requested one, or the one at the target's old position.
        drawn: The random choices of the perturbation or swap in this episode.
        skill: The skill that a merged policy used at the end of the episode.
        abstained: Why a merged policy held still at the end; None if it acted.
    """

    suite: str
    task: str
    initial_state: int
    seed: int
    instruction: str
    target: str | None
    picked: str | None
    outcome: Outcome
    steps: int
    seconds: float
    decisions: int
    decision_milliseconds: float
    slowest_decision_milliseconds: float
    trajectory: str
    visual_tokens: int | None = None
    visual_tokens_kept: int | None = None
    attempts: int = 1
    error: str | None = None
    video: str | None = None
    perturbation: str | None = None
    swap: Swap | None = None
    other: str | None = None
    drawn: dict[str, Any] | None = None
    skill: str | None = None
    abstained: str | None = None

    @property
    def key(self) -> str:
        """Identifies the episode within a run, as `Job.key`."""
        return episode_key(self.suite, self.task, self.initial_state, self.seed, self.perturbation, self.swap)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str = "episode record") -> EpisodeRecord:
        """Build a record from the content of `to_json`.

        Args:
            content: Plain JSON values; fields with a default may be missing, as in files of earlier versions.
            where: Names the record in errors.

        Raises:
            InputError: Keys are missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        found = set(content) if isinstance(content, dict) else set()
        if not needed <= found <= known:
            raise InputError(
                where,
                got=f"missing {sorted(needed - found)}, unknown {sorted(found - known)}",
                expected="the fields of an episode record",
                fix="Evaluate again into a new folder: the file is of another version or program.",
            )
        return cls(**content)


def error_record(job: Job, error: str, attempts: int) -> EpisodeRecord:
    """Return the record of an episode that failed with an error after some attempts."""
    return EpisodeRecord(
        suite=job.suite,
        task=job.task,
        initial_state=job.initial_state,
        seed=job.seed,
        instruction=job.instruction or "",
        target=None,
        picked=None,
        outcome="error",
        steps=0,
        seconds=0.0,
        decisions=0,
        decision_milliseconds=0.0,
        slowest_decision_milliseconds=0.0,
        trajectory="",
        attempts=attempts,
        error=error,
        perturbation=None if job.perturbation is None else str(job.perturbation),
        swap=job.swap,
    )


def episodes_that_differ(first: Iterable[EpisodeRecord], second: Iterable[EpisodeRecord]) -> tuple[str, ...]:
    """Return the keys of shared episodes whose outcome, instruction, steps or actions differ, compared bit by bit."""
    others = {record.key: record for record in second}

    def compared_fields(record: EpisodeRecord) -> tuple[object, ...]:
        return record.outcome, record.picked, record.steps, record.instruction, record.trajectory

    return tuple(
        record.key
        for record in first
        if record.key in others and compared_fields(record) != compared_fields(others[record.key])
    )


class RecordFile:
    """A JSON-lines file with one record for each episode; it stays readable if the process is killed at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, EpisodeRecord]:
        """Return the records by key; of equal keys the last one counts.

        A half-written last line is removed from the file.

        Raises:
            InputError: Another line is damaged; the error names it.
        """
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        records = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            where = f"{self.path.name} line {number}"
            try:
                parsed = json.loads(line)
            except ValueError as error:
                raise InputError(
                    where,
                    got="a line that is not JSON",
                    expected="one record a line",
                    fix="Remove that line, or evaluate again into a new folder.",
                ) from error
            record = EpisodeRecord.from_json(parsed, where)
            records[record.key] = record
        return records

    def append(self, record: EpisodeRecord) -> None:
        """Add a record and wait until it is on disk; raises InputError if the disk refuses to write."""
        with report_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
