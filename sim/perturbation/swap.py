"""Swaps: a scene or a sentence changed so that what was learned by heart leads to the wrong thing.

object       The words ask for another thing of the same scene. The episode ends at the first thing that is lifted.
             Followed: the thing that was asked for was lifted. By heart: the task's own thing was.
position     The thing that is asked for and another, which looks different, exchange places.
             Followed: the task was done. By heart: what now stands in the old place was lifted first.
instruction  The words ask for nothing that is there: those of another task, letters without meaning, or none at all.
             There is nothing to follow. By heart: the task's own thing was lifted first, or its goal was reached.

The idea is that of LIBERO-PRO (Zhou et al., 2025, arXiv 2510.03827), whose own swaps are files of scenes; these are
made from any scene. Chance is not zero: of four things, one is the task's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from ...errors import InputError
from .world import require_members

Swap = Literal["object", "position", "instruction"]

SWAPS: tuple[Swap, ...] = get_args(Swap)

SWAP_DESCRIPTIONS: Mapping[str, str] = {
    "object": "another thing asked for",
    "position": "the thing asked for and another exchanged",
    "instruction": "words that ask for nothing there",
}

UNRELATED_KINDS = ("another task", "letters", "nothing")


def other_object_instruction(world: Any, seed: int) -> tuple[str, str | None]:
    """Return words that ask for another thing of a world's scene, picked by the seed, and that thing's body.

    Raises InputError when there is none, or when the world cannot say which body its words mean.
    """
    others = require_members(world, ("other_instructions",), "swap object").other_instructions()
    if not others:
        raise InputError(
            "instruction of another object",
            got=f"no other object for {getattr(world, 'task_description', type(world).__name__)!r}",
            expected="a scene with at least two objects to pick",
            fix="Leave this task out.",
        )
    return list(others.items())[seed % len(others)]


def unrelated_instruction(
    world: Any, instruction: str, other_task_instructions: tuple[str, ...], seed: int
) -> tuple[str, str]:
    """Return words that ask for nothing that is there, and which of `UNRELATED_KINDS` they are.

    `other_task_instructions` are the words of other tasks; those that this scene could be asked for are passed by.
    """
    valid_instructions = {instruction}
    if hasattr(world, "other_instructions"):
        valid_instructions |= set(world.other_instructions())
    other_task_instructions = tuple(words for words in other_task_instructions if words not in valid_instructions)
    kinds = UNRELATED_KINDS if other_task_instructions else UNRELATED_KINDS[1:]
    kind = kinds[seed % len(kinds)]
    if kind == "another task":
        return other_task_instructions[(seed // len(kinds)) % len(other_task_instructions)], kind
    return (_random_letters(instruction, seed) if kind == "letters" else ""), kind


def _random_letters(instruction: str, seed: int) -> str:
    """Return the same number of words of the same lengths, of random letters."""
    generator = np.random.default_rng(seed)
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(generator.choice(alphabet, size=len(word))) for word in instruction.split())
