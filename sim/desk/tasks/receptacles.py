"""Receptacles: where objects can be placed. The bin, the plate, another object, and the fixtures that hold objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ..fixtures import DeskState
from ..objects import PLATE_HEIGHT, PLATE_RADIUS, DeskObject
from ..scene import BIN_CENTRE, BIN_HALF, BIN_WALL

DROP_FROM_CARRY_HEIGHT = math.inf
"""Release height of a receptacle over which objects are released at the height at which they are carried."""


class Receptacle(Protocol):
    """A place for objects: where it is, what it contains, and how an object is released over it."""

    @property
    def body(self) -> str:
        """Its body in the model."""
        ...

    release_height: ClassVar[float]
    """Height of an object's underside above the placement point when it is released, in metres."""
    release_tolerance: ClassVar[float]
    """Largest horizontal distance from the placement point at which an object is released, in metres."""

    def placement_point(self, desk: DeskState) -> np.ndarray:
        """Return where the underside of an object comes to rest [3]."""
        ...

    def contains(self, desk: DeskState, body: str) -> bool:
        """Tell whether an object is in or on it."""
        ...


@dataclass(frozen=True)
class Bin:
    """The bin, at a fixed position; objects are dropped into it."""

    body = "bin"
    release_height: ClassVar[float] = DROP_FROM_CARRY_HEIGHT
    release_tolerance: ClassVar[float] = 0.04

    def placement_point(self, desk: DeskState) -> np.ndarray:
        return np.array([*BIN_CENTRE, 0.0])

    def contains(self, desk: DeskState, body: str) -> bool:
        x, y, z = desk.position(body)
        return bool(abs(x - BIN_CENTRE[0]) < BIN_HALF and abs(y - BIN_CENTRE[1]) < BIN_HALF and z < BIN_WALL + 0.01)


@dataclass(frozen=True)
class Plate:
    """The plate; an object that leans on its rim from outside is not on it."""

    body = "plate"
    release_height: ClassVar[float] = 0.003
    release_tolerance: ClassVar[float] = 0.02

    def placement_point(self, desk: DeskState) -> np.ndarray:
        x, y, _ = desk.position(self.body)
        return np.array([x, y, PLATE_HEIGHT])

    def contains(self, desk: DeskState, body: str) -> bool:
        offset = desk.position(body) - desk.position(self.body)
        return bool(np.linalg.norm(offset[:2]) < PLATE_RADIUS - 0.004 and offset[2] < PLATE_HEIGHT + 0.025)


@dataclass(frozen=True)
class Top:
    """The top of another object that stands upright."""

    below: DeskObject
    release_height: ClassVar[float] = 0.002
    release_tolerance: ClassVar[float] = 0.012

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
