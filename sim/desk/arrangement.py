"""Where things stand at the start: each arrangement draws collision-free poses from a random generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .objects import PLATE_HEIGHT, DeskObject, LandmarkObject
from .scene import BIN_CENTRE

START_X_RANGE, START_Y_RANGE = (0.145, 0.255), (-0.150, 0.045)
START_RADII = (0.155, 0.275)
"""The patch of desk in which objects start, and their distance from the arm's base, in metres."""

SPACING = 0.058
LANDMARK_SPACING = 0.066
"""Least distance between the centres of two things, and of a thing and a landmark: the open jaw fits between them."""

PICKABLE_X_RANGE, PICKABLE_Y_RANGE = (0.120, 0.280), (-0.175, 0.060)
PICKABLE_RADII = (0.145, 0.280)
"""Where things may stand that were moved from their start: the arm still picks them there, clear of the bin."""

DIRECTIONS = {"left": -np.pi / 2, "right": np.pi / 2, "front": 0.0, "behind": np.pi}
"""Angle on the desk, in radians from the arm's forward axis, of the directions that the front camera sees."""

Pose = tuple[float, ...]
"""Of a body x, y, z in metres and yaw in radians; of a fixture's joint its position alone."""


def _sample_position(rng: np.random.Generator) -> np.ndarray:
    while True:
        position = np.array([rng.uniform(*START_X_RANGE), rng.uniform(*START_Y_RANGE)])
        if _reachable(position):
            return position


def _sample_opposite_sides(
    landmark: np.ndarray, direction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one position in a direction from a landmark and one on its other side; they may be out of reach."""
    angles = (direction + rng.uniform(-0.95, 0.95), direction + np.pi + rng.uniform(-0.95, 0.95))
    first, second = (landmark + rng.uniform(0.066, 0.12) * np.array([np.cos(a), np.sin(a)]) for a in angles)
    return first, second


def _reachable(position: np.ndarray) -> bool:
    x, y = position
    inside = START_X_RANGE[0] <= x <= START_X_RANGE[1] and START_Y_RANGE[0] <= y <= START_Y_RANGE[1]
    return bool(inside and START_RADII[0] <= np.hypot(x, y) <= START_RADII[1])


def is_pickable(position: np.ndarray) -> bool:
    """Tell whether the arm can pick a thing that stands at a position [2], be it outside the patch of the starts."""
    x, y = position
    inside = PICKABLE_X_RANGE[0] <= x <= PICKABLE_X_RANGE[1] and PICKABLE_Y_RANGE[0] <= y <= PICKABLE_Y_RANGE[1]
    return bool(inside and PICKABLE_RADII[0] <= np.hypot(x, y) <= PICKABLE_RADII[1])


def free_position(
    objects: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], rng: np.random.Generator, tries: int = 200
) -> np.ndarray | None:
    """Return a position [2] with room for one more thing beside those at the positions given, None where none is."""
    for _ in range(tries):
        position = np.array([rng.uniform(*PICKABLE_X_RANGE), rng.uniform(*PICKABLE_Y_RANGE)])
        clear = all(np.linalg.norm(position - thing) >= SPACING for thing in objects)
        if (
            clear
            and is_pickable(position)
            and all(have_clearance([position, each], LANDMARK_SPACING) for each in landmarks)
        ):
            return position
    return None


def have_clearance(positions: Sequence[np.ndarray], least: float = SPACING) -> bool:
    """Tell whether all positions are at least so far from each other."""
    return all(
        np.linalg.norm(first - second) >= least
        for index, first in enumerate(positions)
        for second in positions[index + 1 :]
    )


def standing_pose(thing: DeskObject, position: np.ndarray, rng: np.random.Generator, on: float = 0.0) -> Pose:
    """Return the pose of a thing that stands upright at a position [2], `on` metres above the desk, at any yaw."""
    yaw = rng.uniform(-np.pi / 4, np.pi / 4)
    return (float(position[0]), float(position[1]), on + thing.rest_height + 0.0005, float(yaw))


@dataclass(frozen=True)
class ScatteredArrangement:
    """The target and some of the others, anywhere within reach; who the others are differs from start to start."""

    target: DeskObject
    others: tuple[DeskObject, ...]
    count: int = 3
    has_bin: ClassVar[bool] = True

    @property
    def objects(self) -> tuple[DeskObject, ...]:
        return (self.target, *self.others)

    @property
    def fixtures(self) -> tuple[LandmarkObject, ...]:
        return ()

    def is_valid(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether, with bodies at these positions [2], the words still say which thing is meant: always."""
        return True

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Return the pose of every body in play."""
        chosen = [self.target, *(self.others[i] for i in rng.permutation(len(self.others))[: self.count])]
        while True:
            positions = [_sample_position(rng) for _ in chosen]
            if have_clearance(positions):
                return {thing.body: standing_pose(thing, at, rng) for thing, at in zip(chosen, positions, strict=True)}


@dataclass(frozen=True)
class SpatialRelationArrangement:
    """Two equal objects of which exactly one, the target, stands in `relation` to a landmark.

    Left, right, in front and behind are as the front camera sees them.
    """

    relation: str
    target: DeskObject
    other: DeskObject
    has_bin: ClassVar[bool] = True

    @property
    def objects(self) -> tuple[DeskObject, ...]:
        return (self.target, self.other)

    @property
    def fixtures(self) -> tuple[LandmarkObject, ...]:
        if "plate" in self.relation:
            return (LandmarkObject("plate"),)
        return () if "bin" in self.relation else (LandmarkObject("bowl"),)

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Return the pose of every body in play."""
        while True:
            landmark, target, other = (_sample_position(rng) for _ in range(3))
            if "bin" in self.relation:
                landmark = np.array(BIN_CENTRE)
            elif self.relation in DIRECTIONS:
                target, other = _sample_opposite_sides(landmark, DIRECTIONS[self.relation], rng)
            on_plate = {"on_plate": "target", "off_plate": "other"}.get(self.relation)
            if on_plate == "target":
                target = landmark
            elif on_plate == "other":
                other = landmark
            clear = all(have_clearance([landmark, thing], LANDMARK_SPACING) for thing in (target, other))
            apart = have_clearance([target, other]) and (clear or on_plate)
            if apart and _reachable(target) and _reachable(other) and self._relation_holds(landmark, target, other):
                break
        poses = {
            self.target.body: standing_pose(self.target, target, rng, PLATE_HEIGHT if on_plate == "target" else 0.0),
            self.other.body: standing_pose(self.other, other, rng, PLATE_HEIGHT if on_plate == "other" else 0.0),
        }
        for fixture in self.fixtures:
            poses[fixture.body] = (float(landmark[0]), float(landmark[1]), 0.0, 0.0)
        return poses

    def is_valid(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether the words are true of the target and not of the other, with bodies at these positions [2]."""
        landmark = positions[self.fixtures[0].body] if self.fixtures else np.array(BIN_CENTRE)
        return self._relation_holds(landmark, positions[self.target.body], positions[self.other.body])

    def _relation_holds(self, landmark: np.ndarray, target: np.ndarray, other: np.ndarray) -> bool:
        """Tell whether the target stands in the relation, clearly, and the other in its opposite."""
        to_target, to_other = target - landmark, other - landmark
        near, far = np.linalg.norm(to_target), np.linalg.norm(to_other)
        match self.relation:
            case "left" | "right" | "front" | "behind":
                angle = DIRECTIONS[self.relation]
                axis = np.array([np.cos(angle), np.sin(angle)])
                # Off to the side the words would be arguable: at most about 53 degrees from the axis.
                return bool(axis @ to_target >= 0.6 * near and axis @ to_other <= -0.6 * far)
            case "next_to":
                return bool(near <= 0.085 and far >= 0.13)
            case "far_from":
                return bool(far <= 0.085 and near >= 0.13)
            case "near_bin":
                return bool(far - near >= 0.07)
            case "far_bin":
                return bool(near - far >= 0.07)
            case "on_plate":
                return bool(far >= 0.075)
            case "off_plate":
                return bool(near >= 0.075)
        raise ValueError(f"unknown relation {self.relation!r}")
