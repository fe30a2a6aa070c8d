"""A task of the desk: instruction, goals and arrangement."""

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
    from ...perturbation.swap import Swap

MAX_STEPS = 240
"""Default length of an episode in control steps."""


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: Name of the suite.
        name: Name of the task.
        instructions: The instruction, then its paraphrases.
        arrangement: Draws the initial states.
        goals: What has to be achieved; all goals have to hold at the end.
        in_order: Whether the goals have to be achieved for the first time in their order.
        held_out: Whether the task is missing from the starter checkpoint's training data.
        max_steps: Length of an episode in control steps.
        cue: A cue that is shown only at the start and has to be remembered.
        other_nouns: Other objects for which the instruction could ask in the same scene; None takes the objects' names.
    """

    suite: str
    name: str
    instructions: tuple[str, ...]
    arrangement: ScatteredArrangement | SpatialRelationArrangement | KitchenArrangement
    goals: tuple[Goal, ...]
    in_order: bool = False
    held_out: bool = False
    max_steps: int = MAX_STEPS
    cue: Cue | None = None
    other_nouns: tuple[str, ...] | None = None

    @property
    def instruction(self) -> str:
        """The instruction."""
        return self.instructions[0]

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """Other wordings of the instruction."""
        return self.instructions[1:]

    @property
    def target(self) -> str:
        """Body that is acted on first."""
        return self.goals[0].target

    @property
    def swaps(self) -> tuple[Swap, ...]:
        """The swaps that make sense in this task: equal objects that exchange positions would look as before."""
        swaps: list[Swap] = ["instruction"]
        names = {each.body: each.name for each in self.arrangement.objects}
        if isinstance(self.arrangement, ScatteredArrangement) and len(set(names.values())) > 1:
            swaps.insert(0, "position")
        if self.other_nouns != ():
            swaps.insert(0, "object")
        return tuple(swaps)

    def generator(self, initial_state: int) -> np.random.Generator:
        """Return the random generator of an initial state: it alone decides the state, equally on every machine."""
        return np.random.default_rng([zlib.crc32(f"{self.suite}/{self.name}".encode()), initial_state])
