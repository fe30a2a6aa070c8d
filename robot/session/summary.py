"""The summary of a session (its episodes and the loop's metrics), and the interface of its observers."""

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
    """How one episode went.

    Attributes:
        index: Its number.
        instruction: The instruction at its end.
        ended_by: "condition", "time", "asked" (by the operator) or "stopped: REASON".
        seconds: Its duration.
        decisions: Number of chunks that were sent.
        outcome: What the end condition returned, None if something else ended the episode.
        holds: Number of holds by reason.
        refused_observations: Number of times that observations were refused, by reason.
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
    """How a session went.

    Attributes:
        episodes: Its episodes.
        metrics: The loop's metrics; None if the control process ended before it sent them.
        record: The flight record.
        warm_up_ms: Median time of the warm-up decisions.
        dry_run: Whether the torque stayed off.
        stopped: Why a stop ended the session; empty if none did.
    """

    episodes: tuple[EpisodeSummary, ...]
    metrics: LoopMetrics | None
    record: Path | None
    warm_up_ms: float
    dry_run: bool
    stopped: str = ""

    def lines(self) -> list[str]:
        """Return the summary as lines for people."""
        lines = [
            f"episode {each.index}: {each.instruction!r} ended by {each.ended_by} after {each.seconds:.1f} s, "
            f"{each.decisions} decisions" + (f", {each.outcome}" if each.outcome is not None else "")
            for each in self.episodes
        ]
        lines += [f"stopped: {self.stopped}"] if self.stopped else []
        lines += self.metrics.lines() if self.metrics is not None else []
        lines += [f"flight record: {self.record}"] if self.record is not None else []
        return lines


@dataclass(frozen=True, eq=False)
class StepSnapshot:
    """The session at one step of the contract's rate, for views and recordings.

    Attributes:
        time: When the joints were measured, in steady seconds.
        episode: Number of the episode.
        instruction: The present instruction.
        frames: The newest frame of each camera.
        joints: float64 [A].
        target: The motors' goal, float64 [A]; None before the first.
        state: The governor's state.
    """

    time: float
    episode: int
    instruction: str
    frames: Mapping[str, TimestampedFrame]
    joints: np.ndarray
    target: np.ndarray | None
    state: str


class SessionObserver:
    """Observes a session: override the methods that are needed.

    The calls come from the session's thread, so they must be quick. An error raised here ends the session.
    """

    def on_session_start(self, arm: ArmDescription) -> None:
        """Everything is checked and the loop runs; the torque is off."""

    def on_episode_start(self, episode: int, instruction: str) -> None:
        """An episode begins; the torque is on."""

    def on_step(self, view: StepSnapshot) -> None:
        """One period of the contract's rate has passed."""

    def on_chunk(self, chunk: ActionChunk, seconds: float) -> None:
        """A chunk was decided, within `seconds`, and sent."""

    def on_event(self, event: Event) -> None:
        """The governor reports an event."""

    def on_episode_end(self, summary: EpisodeSummary) -> None:
        """An episode has ended; the arm is held."""
