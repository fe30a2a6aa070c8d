"""Where things can be put: the bin, the plate, another thing, and what holds things among the fixtures.

A place knows its middle, whether it holds a thing, and how a thing is let go over it: how high its underside is above
the middle then, and within what distance aside. Things are dropped into the bin from the height they are carried at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from .fixtures import DeskState
from .objects import PLATE_HEIGHT, PLATE_RADIUS, DeskObject
from .scene import BIN_CENTRE, BIN_HALF, BIN_WALL

DROP_FROM_CARRY_HEIGHT = math.inf
"""The height at which a thing is let go that is not lowered first."""


class Receptacle(Protocol):
    @property
    def body(self) -> str: ...

    release_height: ClassVar[float]
    release_tolerance: ClassVar[float]

    def placement_point(self, desk: DeskState) -> np.ndarray:
        """Return where the underside of a thing comes to rest, at best [3]."""
        ...

    def contains(self, desk: DeskState, body: str) -> bool:
        """Tell whether a thing lies in or on it."""
        ...


@dataclass(frozen=True)
class Bin:
    """The bin, which always stands in the same place."""

    body = "bin"
    release_height = DROP_FROM_CARRY_HEIGHT
    release_tolerance = 0.04

    def placement_point(self, desk: DeskState) -> np.ndarray:
        return np.array([*BIN_CENTRE, 0.0])

    def contains(self, desk: DeskState, body: str) -> bool:
        x, y, z = desk.position(body)
        return bool(abs(x - BIN_CENTRE[0]) < BIN_HALF and abs(y - BIN_CENTRE[1]) < BIN_HALF and z < BIN_WALL + 0.01)


@dataclass(frozen=True)
class Plate:
    """The plate; a thing that leans on its rim from outside is not on it."""

    body = "plate"
    release_height = 0.003
    release_tolerance = 0.02

    def placement_point(self, desk: DeskState) -> np.ndarray:
        x, y, _ = desk.position(self.body)
        return np.array([x, y, PLATE_HEIGHT])

    def contains(self, desk: DeskState, body: str) -> bool:
        offset = desk.position(body) - desk.position(self.body)
        return bool(np.linalg.norm(offset[:2]) < PLATE_RADIUS - 0.004 and offset[2] < PLATE_HEIGHT + 0.025)


@dataclass(frozen=True)
class Top:
    """The top of another thing that stands upright."""

    below: DeskObject
    release_height = 0.002
    release_tolerance = 0.012

    @property
    def body(self) -> str:
        return self.below.body

    def placement_point(self, desk: DeskState) -> np.ndarray:
        x, y, z = desk.position(self.below.body)
        return np.array([x, y, z + self.below.rest_height])

    def contains(self, desk: DeskState, body: str) -> bool:
        offset = desk.position(body) - desk.position(self.below.body)
        height = 2 * self.below.rest_height
        return bool(np.linalg.norm(offset[:2]) < self.below.rest_height and abs(offset[2] - height) < 0.005)
