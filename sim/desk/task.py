"""A task of the desk: what is said, what has to be achieved, how things may stand at the start."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arrangement import ScatteredArrangement, SpatialRelationArrangement
from .cue import Cue
from .goals import Goal
from .kitchen import KitchenArrangement

if TYPE_CHECKING:
    from ..perturbation.swap import Swap

MAX_STEPS = 240


@dataclass(frozen=True)
class Task:
    """One task: what is said, what has to be achieved, and how things may stand at the start."""

    suite: str
    name: str
    instructions: tuple[str, ...]
    """The instruction first, then its paraphrases."""
    arrangement: ScatteredArrangement | SpatialRelationArrangement | KitchenArrangement
    goals: tuple[Goal, ...]
    """All of them have to hold in the end."""
    in_order: bool = False
    """Whether they have to be achieved one after the other for the first time."""
    held_out: bool = False
    """Whether the starter checkpoint never saw it."""
    max_steps: int = MAX_STEPS
    cue: Cue | None = None
    """What is shown at the start alone and has to be remembered."""
    other_nouns: tuple[str, ...] | None = None
    """What else the same scene could be asked for; None where the names of its things say it."""

    @property
    def instruction(self) -> str:
        return self.instructions[0]

    @property
    def paraphrases(self) -> tuple[str, ...]:
        return self.instructions[1:]

    @property
    def target(self) -> str:
        """The body that is acted on first."""
        return self.goals[0].target

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that make sense in it: equal things that exchange places would look as before."""
        swaps: list[Swap] = ["instruction"]
        names = {thing.body: thing.name for thing in self.arrangement.objects}
        if isinstance(self.arrangement, ScatteredArrangement) and len(set(names.values())) > 1:
            swaps.insert(0, "position")
        if self.other_nouns != ():
            swaps.insert(0, "object")
        return tuple(swaps)

    def generator(self, initial_state: int) -> np.random.Generator:
        """Return the random generator that alone decides this initial state, on every machine alike."""
        return np.random.default_rng([zlib.crc32(f"{self.suite}/{self.name}".encode()), initial_state])
