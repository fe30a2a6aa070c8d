"""The seven axes of perturbation, their levels, and how they are written.

The axes are those of LIBERO-Plus (Fei et al., 2025, arXiv 2510.13626). The levels are our own, defined in each
axis' module.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, suggest

AXES = {
    "camera": "fixed cameras moved, turned and zoomed",
    "lighting": "light of other strength, colour and direction",
    "background": "another colour and pattern of desk, floor and walls",
    "start_pose": "the arm starts in another pose",
    "layout": "objects moved together, and others added",
    "sensor": "noise, blur, compression, stains or exposure on images, or noise on the state",
    "language": "the same instruction in other words",
}
"""Names and descriptions, in the order of the tables."""

LEVELS = range(1, 6)
DEFAULT_LEVEL = 3
"""The level of an axis that is written without one."""

ALL = "all"

EXAMPLES = "camera, camera=2, lighting=1,3,5, layout=1-5 or all"


@dataclass(frozen=True)
class Perturbation:
    """One axis at one level; `str` gives "camera=3". Raises InputError for an unknown axis or level.

    Attributes:
        axis: A key of `AXES`.
        level: 1 (slight) to 5 (as strong as a person still handles easily).
    """

    axis: str
    level: int = DEFAULT_LEVEL

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            near = suggest(self.axis, [*AXES, ALL])
            known = f"one of {', '.join(AXES)}, or {ALL}"
            fix = near if near.startswith("Did") else f"Write for example {EXAMPLES}."
            raise InputError("axis of perturbation", got=repr(self.axis), expected=known, fix=fix)
        if self.level not in LEVELS:
            expected = f"{LEVELS[0]} to {LEVELS[-1]}"
            fix = "Use a level from 1 to 5; unperturbed episodes are run unless they are switched off."
            raise InputError(f"level of {self.axis}", got=self.level, expected=expected, fix=fix)

    def __str__(self) -> str:
        return f"{self.axis}={self.level}"

    def generator(self, suite: str, task: str, initial_state: int, seed: int) -> np.random.Generator:
        """Return the random generator of an episode's perturbation.

        It does not depend on the level: all levels of an axis go in the same direction, each farther than the last.
        """
        return np.random.default_rng([zlib.crc32(f"{self.axis}/{suite}/{task}".encode()), initial_state, seed])


def parse_perturbation(text: str) -> Perturbation:
    """Parse the `str` of one perturbation; raises InputError for anything else."""
    found = parse_perturbations([text])
    if len(found) != 1:
        raise InputError("perturbation", got=repr(text), expected="one axis at one level", fix="Write it as camera=3.")
    return found[0]


def parse_perturbations(texts: Iterable[str]) -> tuple[Perturbation, ...]:
    """Parse perturbations.

    Args:
        texts: Such as `camera`, `camera=2`, `camera=1,3`, `camera=1-5` and `all=3`.

    Returns:
        Each perturbation once, in the order of `AXES`, levels ascending.

    Raises:
        InputError: Unknown axis or level.
    """
    found = set()
    for text in texts:
        name, equals, levels = text.strip().partition("=")
        for axis in AXES if name == ALL else (name,):
            found |= {Perturbation(axis, level) for level in (_levels(text, levels) if equals else [DEFAULT_LEVEL])}
    order = list(AXES)
    return tuple(sorted(found, key=lambda each: (order.index(each.axis), each.level)))


def _levels(text: str, levels: str) -> list[int]:
    found: list[int] = []
    for part in levels.split(","):
        span = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if span is None:
            fix = "Use levels from 1 to 5, as in camera=1-5."
            raise InputError("perturbation", got=repr(text), expected=EXAMPLES, fix=fix)
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise InputError("perturbation", got=repr(text), expected=EXAMPLES, fix=f"Write {last}-{first}.")
        # Of a span out of range only the ends are checked.
        found += [first, last] if last > LEVELS[-1] else range(first, last + 1)
    return found
