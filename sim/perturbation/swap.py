"""Swaps: the scene or the instruction is changed so that memorised behaviour leads to the wrong object.

object       The instruction asks for another object of the scene. The episode ends when the first object is lifted.
             Followed: the requested object was lifted. Memorised: the task's own object was lifted.
position     The requested object and another one, which looks different, exchange positions.
             Followed: the task succeeded. Memorised: the object at the old position was lifted first.
instruction  The instruction asks for nothing that is there: that of another task, random letters, or an empty one.
             There is nothing to follow. Memorised: the task's own object was lifted first, or its goal was reached.

The idea is from LIBERO-PRO (Zhou et al., 2025, arXiv 2510.03827), which has its swaps as scene files; these are made
from any scene. The rate by chance is not zero: of four objects, one is the task's own.
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
    "object": "another object requested",
    "position": "requested object and another exchanged",
    "instruction": "instruction for nothing that is there",
}

UNRELATED_KINDS = ("another task", "letters", "nothing")


def other_object_instruction(world: Any, seed: int) -> tuple[str, str | None]:
    """Return an instruction for another object of the scene, and that object's body.

    Args:
        world: The world, with `other_instructions`.
        seed: Chooses among the objects.

    Raises:
        InputError: There is no other object, or the world does not support this swap.
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
    """Return an instruction for nothing that is there, and its kind, one of `UNRELATED_KINDS`.

    Args:
        world: The world; its `other_instructions`, if it has any, are not used.
        instruction: The task's instruction.
        other_task_instructions: Instructions of other tasks; those that fit this scene are not used.
        seed: Chooses the kind and the instruction.
    """
    valid_instructions = {instruction}
    if hasattr(world, "other_instructions"):
        valid_instructions |= set(world.other_instructions())
    other_task_instructions = tuple(each for each in other_task_instructions if each not in valid_instructions)
    kinds = UNRELATED_KINDS if other_task_instructions else UNRELATED_KINDS[1:]
    kind = kinds[seed % len(kinds)]
    if kind == "another task":
        return other_task_instructions[(seed // len(kinds)) % len(other_task_instructions)], kind
    return (_random_letters(instruction, seed) if kind == "letters" else ""), kind


def _random_letters(instruction: str, seed: int) -> str:
    """Return random letters with the same number of words of the same lengths."""
    generator = np.random.default_rng(seed)
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(generator.choice(alphabet, size=len(word))) for word in instruction.split())
