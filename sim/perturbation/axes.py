"""The seven axes along which an episode can be disturbed, their levels, and how they are written.

The axes are those of LIBERO-Plus (Fei et al., 2025, arXiv 2510.13626); what a level means here is said in each axis'
own file and does not claim to be that benchmark's.
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
    "lighting": "light of another strength, colour and direction",
    "background": "another colour and pattern of desk, floor and walls",
    "start_pose": "the arm starts in another pose",
    "layout": "things moved together, and others added",
    "sensor": "noise, blur, compression, stains or exposure on images, or noise on the state",
    "language": "the same asked for in other words",
}
"""Names and meanings, in the order of every table."""

LEVELS = range(1, 6)
DEFAULT_LEVEL = 3
"""What an axis without a level means."""

ALL = "all"

EXAMPLES = "camera, camera=2, lighting=1,3,5, layout=1-5 or all"


@dataclass(frozen=True)
class Perturbation:
    """One axis at one level, 1 (slight) to 5 (as much as a person still takes in their stride); `str` is "camera=3".

    Raises InputError for an unknown axis and for a level out of range.
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
            fix = "Unperturbed episodes, level 0 of every axis, are run beside the others without being asked for."
            raise InputError(f"level of {self.axis}", got=self.level, expected=expected, fix=fix)

    def __str__(self) -> str:
        return f"{self.axis}={self.level}"

    def generator(self, suite: str, task: str, initial_state: int, seed: int) -> np.random.Generator:
        """Return the random generator of an episode's perturbation.

        The level is left out on purpose: every level of an axis goes the same way, only farther, where there is room.
        """
        return np.random.default_rng([zlib.crc32(f"{self.axis}/{suite}/{task}".encode()), initial_state, seed])


def parse_perturbation(text: str) -> Perturbation:
    """Return what `str` of a perturbation says; raises InputError for anything else."""
    found = parse_perturbations([text])
    if len(found) != 1:
        raise InputError("perturbation", got=repr(text), expected="one axis at one level", fix="Such as camera=3.")
    return found[0]


def parse_perturbations(texts: Iterable[str]) -> tuple[Perturbation, ...]:
    """Return the perturbations that `camera`, `camera=2`, `camera=1,3`, `camera=1-5` and `all=3` name, each once.

    They come in the order of `AXES`, levels ascending. Raises InputError for an unknown axis or level.
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
            raise InputError("perturbation", got=repr(text), expected=EXAMPLES, fix="Levels are numbers from 1 to 5.")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise InputError("perturbation", got=repr(text), expected=EXAMPLES, fix=f"Write {last}-{first}.")
        # A span far out of range is refused by its ends, not number by number.
        found += [first, last] if last > LEVELS[-1] else range(first, last + 1)
    return found
