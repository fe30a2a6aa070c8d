"""What an evaluation asks for (jobs), what it finds (records), and the file that keeps them through a kill."""

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

    `outcome` is "error" when the world or the policy's process broke: that says nothing about the policy's skill and
    counts neither as success nor as failure. `trajectory` is a digest of every action, so that two runs can be
    compared bit by bit. `seconds` is the whole episode, `decision_milliseconds` the median time of a decision.
    `visual_tokens` and `visual_tokens_kept` are known of filmed episodes of a policy that shows where it looks.

    `perturbation` is an axis and a level, such as "camera=3", and `drawn` what came of it in this episode. `swap` is
    the swap that was made, and `other` the body of its second thing: what was asked for, or what stands in the old
    place. Success is then what the swap counts as such. `skill`: the one by which a merged policy ended the episode,
    `abstained`: why it held still at its end, None where it acted.
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
        return episode_key(self.suite, self.task, self.initial_state, self.seed, self.perturbation, self.swap)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str = "episode record") -> EpisodeRecord:
        """Build a record from `to_json`'s content; raises InputError for missing or unknown keys.

        What has a default may be missing: files of earlier versions know less.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        found = set(content) if isinstance(content, dict) else set()
        if not needed <= found <= known:
            raise InputError(
                where,
                got=f"missing {sorted(needed - found)}, unknown {sorted(found - known)}",
                expected="the fields of an episode record",
                fix="The file is of another version or program; evaluate again into a new folder.",
            )
        return cls(**content)


def error_record(job: Job, error: str, attempts: int) -> EpisodeRecord:
    """Return the record of an episode that could not be run to its end."""
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
    """Return the keys of episodes that two runs share and that did not go alike, to the last bit of every action."""
    others = {record.key: record for record in second}

    def compared_fields(record: EpisodeRecord) -> tuple[object, ...]:
        return record.outcome, record.picked, record.steps, record.instruction, record.trajectory

    return tuple(
        record.key
        for record in first
        if record.key in others and compared_fields(record) != compared_fields(others[record.key])
    )


class RecordFile:
    """A JSON-lines file that grows by one record an episode and survives a kill at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, EpisodeRecord]:
        """Return the records by key; the latest of a key wins, a half-written last line is cut off the file.

        Raises InputError, naming the line, when anything else is damaged.
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
        """Add a record and wait until it is on disk; raises InputError when it cannot be written."""
        with report_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
