"""A chunk on its way from a policy to an arm: its steps, and what proves that it is fresh and meant for this arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """T steps decided at once; step i is for `observed + i * period` to `observed + (i + 1) * period`.

    `actions`: [T, A] in the contract's units. What they hold is not checked here: the governor refuses what must not
    reach a motor, and has to see it for that. `observed`: steady seconds (`time.monotonic`) at which the oldest of the
    joints and pictures that were decided from were taken. `sequence` rises strictly within an episode.
    """

    session: str
    episode: int
    sequence: int
    observed: float
    period: float
    actions: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.actions, np.ndarray):
            got = type(self.actions).__name__
            raise InputError("Chunk.actions", got=got, expected="an array [T, A]", fix="Give a numpy array.")
