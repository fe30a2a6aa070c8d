"""What came of a session: each episode, the loop's figures, and what people want to see while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import ArmDescription
from ..control.loop_figures import LoopFigures
from ..governor.chunk import Chunk
from ..governor.verdict import Event
from .cameras import Frame


@dataclass(frozen=True)
class EpisodeSummary:
    """One episode: how it ended ("condition", "time", "asked", "stopped: ..."), and what the end condition said.

    `holds` and `refused_observations` count by reason.
    """

    index: int
    instruction: str
    ended_by: str
    seconds: float
    decisions: int
    outcome: Any = None
    holds: Mapping[str, int] = field(default_factory=dict)
    refused_observations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionSummary:
    """A whole session. `stopped`: why it ended before its last episode, empty where it did not.

    `figures`: None where the control process was gone before it could tell. `record`: the flight record.
    """

    episodes: tuple[EpisodeSummary, ...]
    figures: LoopFigures | None
    record: Path | None
    warm_up_ms: float
    dry_run: bool
    stopped: str = ""

    def lines(self) -> list[str]:
        """Return the summary as lines for people."""
        told = [
            f"episode {each.index}: {each.instruction!r} ended by {each.ended_by} after {each.seconds:.1f} s, "
            f"{each.decisions} decisions" + (f", {each.outcome}" if each.outcome is not None else "")
            for each in self.episodes
        ]
        told += [f"stopped: {self.stopped}"] if self.stopped else []
        told += self.figures.lines() if self.figures is not None else []
        told += [f"flight record: {self.record}"] if self.record is not None else []
        return told


@dataclass(frozen=True, eq=False)
class StepView:
    """The session at one step of the contract's rate, for who shows or records it.

    `frames` by camera. `joints`: float64 [A], measured at `time`. `target`: what the motors are told, float64 [A], None
    before the first. `state`: the governor's.
    """

    time: float
    episode: int
    instruction: str
    frames: Mapping[str, Frame]
    joints: np.ndarray
    target: np.ndarray | None
    state: str


class Observer:
    """What a session tells whoever watches, in the session's own thread: be quick. An error raised here ends it."""

    def started(self, arm: ArmDescription) -> None:
        """All was checked, and the loop runs; no torque yet."""

    def episode_began(self, episode: int, instruction: str) -> None:
        """Torque is on."""

    def stepped(self, view: StepView) -> None:
        """A step's time has passed."""

    def decided(self, chunk: Chunk, seconds: float) -> None:
        """A chunk was decided within so many seconds, and sent."""

    def happened(self, event: Event) -> None:
        """The governor tells of something."""

    def episode_ended(self, summary: EpisodeSummary) -> None:
        """The arm is held."""
