"""The outputs of the governor: verdicts on chunks, commands for the motors, and events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Event:
    """Something that happened: its kind in one word, a detail for people, and the time in steady seconds."""

    kind: str
    detail: str
    time: float


@dataclass(frozen=True)
class GovernorVerdict:
    """Whether a request was accepted, and if not, why: `reason` is a key, `detail` a text."""

    accepted: bool
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, eq=False)
class MotorCommand:
    """The command of one tick.

    Attributes:
        target: The motors' goal, float64 [A]; None while there is no pose to hold.
        state: The governor's state.
        sequence: Sequence number of the chunk that the target follows, -1 if none.
        events: All events since the last tick.
    """

    target: np.ndarray | None
    state: str
    sequence: int
    events: tuple[Event, ...]
