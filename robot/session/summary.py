"""What came of a session: each episode, the loop's figures, and what people want to see while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import ArmDescription
from ..control.loop_metrics import LoopMetrics
from ..governor.chunk import ActionChunk
from ..governor.outputs import Event
from .cameras import TimestampedFrame


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
    figures: LoopMetrics | None
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
class StepSnapshot:
    """The session at one step of the contract's rate, for who shows or records it.

    `frames` by camera. `joints`: float64 [A], measured at `time`. `target`: what the motors are told, float64 [A], None
    before the first. `state`: the governor's.
    """

    time: float
    episode: int
    instruction: str
    frames: Mapping[str, TimestampedFrame]
    joints: np.ndarray
    target: np.ndarray | None
    state: str


class SessionObserver:
    """What a session tells whoever watches, in the session's own thread: be quick. An error raised here ends it."""

    def on_session_start(self, arm: ArmDescription) -> None:
        """All was checked, and the loop runs; no torque yet."""

    def on_episode_start(self, episode: int, instruction: str) -> None:
        """Torque is on."""

    def on_step(self, view: StepSnapshot) -> None:
        """A step's time has passed."""

    def on_chunk(self, chunk: ActionChunk, seconds: float) -> None:
        """A chunk was decided within so many seconds, and sent."""

    def on_event(self, event: Event) -> None:
        """The governor tells of something."""

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        """The arm is held."""
