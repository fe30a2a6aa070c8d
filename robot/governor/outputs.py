"""What a governor answers: verdicts on chunks, commands for the motors, and the events behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Event:
    """Something that happened: a short kind, a detail for people, and when, in steady seconds."""

    kind: str
    detail: str
    time: float


@dataclass(frozen=True)
class GovernorVerdict:
    """Whether a chunk was taken, and if not, why: `reason` is one word, `detail` a sentence."""

    accepted: bool
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, eq=False)
class MotorCommand:
    """What the motors are told in this tick: `target` float64 [A], or None where there is no pose to hold yet.

    `state`: the governor's. `sequence`: of the chunk that the target follows, -1 where none. `events`: all since the
    last tick.
    """

    target: np.ndarray | None
    state: str
    sequence: int
    events: tuple[Event, ...]
