"""A chunk on its way from a policy to an arm: its steps, and what proves that it is fresh and meant for this arm."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ...errors import InputError


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """T actions decided at once; step i is for `observed + i * period` to `observed + (i + 1) * period`.

    The content of `actions` is not checked here: the governor refuses what must not reach a motor, and has to see it
    for that.

    Attributes:
        session: Name of the session that decided it.
        episode: Number of the episode.
        sequence: Rises strictly within an episode.
        observed: Steady seconds (`time.monotonic`) at which the oldest of the joints and images that the policy saw
            were taken.
        period: Seconds between two steps.
        actions: [T, A] in the contract's units.
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

    def header(self) -> dict[str, Any]:
        """Return all fields but the actions, by name, as the channel and the flight record write them."""
        return {name: getattr(self, name) for name in CHUNK_HEADER}


CHUNK_HEADER = tuple(field.name for field in fields(ActionChunk) if field.name != "actions")
"""Names of all fields of a chunk but the actions."""
