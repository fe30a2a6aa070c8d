"""Arrangements: each draws the collision-free poses of an initial state from a random generator.

All numbers here decide initial states: a change makes results incomparable with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..objects import PLATE_HEIGHT, DeskObject, LandmarkObject
from ..scene import BIN_CENTRE

START_X_RANGE, START_Y_RANGE = (0.145, 0.255), (-0.150, 0.045)
START_RADII = (0.155, 0.275)
"""Area in which objects start, and their distance from the arm's base, in metres."""

SPACING = 0.058
LANDMARK_SPACING = 0.066
"""Least distance between the centres of two objects, and of an object and a landmark, in metres: the open jaw fits in
between."""

MAX_RELATION_DISTANCE = 0.12
"""Objects in a direction from a landmark are drawn up to this distance from it, in metres."""

RELATION_ANGLE_RANGE = (-0.95, 0.95)
"""Range of the angle between a relation's axis and the direction in which an object is drawn, in radians."""

MIN_RELATION_COSINE = 0.6
"""An object is in a direction from a landmark up to about 53 degrees from its axis; beyond, it would be arguable."""

NEXT_TO_DISTANCE, FAR_FROM_DISTANCE = 0.085, 0.13
"""An object is next to a landmark up to the first distance and far from it from the second on, in metres."""

BIN_DISTANCE_DIFFERENCE = 0.07
"""By how much one object has to be nearer to the bin than the other, in metres."""

OFF_PLATE_DISTANCE = 0.075
"""An object is off the plate from this distance of the centres on, in metres."""

DROP_HEIGHT = 0.0005
"""Gap under an object at the start, in metres: it settles."""

MAX_YAW = np.pi / 4
"""Half range of an object's yaw, in radians."""

PICKABLE_X_RANGE, PICKABLE_Y_RANGE = (0.120, 0.280), (-0.175, 0.060)
PICKABLE_RADII = (0.145, 0.280)
"""Area in which the arm can pick objects, clear of the bin, and their distance from its base, in metres."""

DIRECTIONS = {"left": -np.pi / 2, "right": np.pi / 2, "front": 0.0, "behind": np.pi}
"""Directions as the front camera sees them: angle on the desk from the arm's forward axis, in radians."""

Pose = tuple[float, ...]
"""Of a body: x, y, z in metres and yaw in radians. Of a fixture's joint: its position alone."""


def _sample_position(rng: np.random.Generator) -> np.ndarray:
    while True:
        position = np.array([rng.uniform(*START_X_RANGE), rng.uniform(*START_Y_RANGE)])
        if _is_start(position):
            return position


def _sample_opposite_sides(
    landmark: np.ndarray, direction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one position [2] in a direction from a landmark and one on its other side; they may be out of reach."""
    angles = (direction + rng.uniform(*RELATION_ANGLE_RANGE), direction + np.pi + rng.uniform(*RELATION_ANGLE_RANGE))
    first, second = (
        landmark + rng.uniform(LANDMARK_SPACING, MAX_RELATION_DISTANCE) * np.array([np.cos(angle), np.sin(angle)])
        for angle in angles
    )
    return first, second


def _is_start(position: np.ndarray) -> bool:
    x, y = position
    inside = START_X_RANGE[0] <= x <= START_X_RANGE[1] and START_Y_RANGE[0] <= y <= START_Y_RANGE[1]
    return bool(inside and START_RADII[0] <= np.hypot(x, y) <= START_RADII[1])


def is_pickable(position: np.ndarray) -> bool:
    """Tell whether the arm can pick an object at a position [2], which may be outside the area of the starts."""
    x, y = position
    inside = PICKABLE_X_RANGE[0] <= x <= PICKABLE_X_RANGE[1] and PICKABLE_Y_RANGE[0] <= y <= PICKABLE_Y_RANGE[1]
    return bool(inside and PICKABLE_RADII[0] <= np.hypot(x, y) <= PICKABLE_RADII[1])


def free_position(
    object_positions: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], rng: np.random.Generator, tries: int = 200
) -> np.ndarray | None:
    """Draw a position with room for one more object.

    Args:
        object_positions: Positions [2] of the objects.
        landmarks: Positions [2] of the landmarks.
        rng: Source of the position.
        tries: How often a position is drawn.

    Returns:
        The position [2]; None if none was found.
    """
    for _ in range(tries):
        position = np.array([rng.uniform(*PICKABLE_X_RANGE), rng.uniform(*PICKABLE_Y_RANGE)])
        clear = all(np.linalg.norm(position - each) >= SPACING for each in object_positions)
        if (
            clear
            and is_pickable(position)
            and all(have_clearance([position, each], LANDMARK_SPACING) for each in landmarks)
        ):
            return position
    return None


def have_clearance(positions: Sequence[np.ndarray], least: float = SPACING) -> bool:
    """Tell whether all positions [2] are at least a distance apart, in metres."""
    return all(
        np.linalg.norm(first - second) >= least
        for index, first in enumerate(positions)
        for second in positions[index + 1 :]
    )


def standing_pose(
    desk_object: DeskObject, position: np.ndarray, rng: np.random.Generator, surface_height: float = 0.0
) -> Pose:
    """Return the pose of an upright object with a random yaw.

    Args:
        desk_object: The object.
        position: Its position [2], in metres.
        rng: Source of the yaw.
        surface_height: Height of the surface under it above the desk, in metres.
    """
    yaw = rng.uniform(-MAX_YAW, MAX_YAW)
    height = surface_height + desk_object.rest_height + DROP_HEIGHT
    return (float(position[0]), float(position[1]), height, float(yaw))


@dataclass(frozen=True)
class ScatteredArrangement:
    """The target and some other objects, anywhere within reach; initial states draw which others.

    Attributes:
        target: The object to act on.
        others: The objects from which the others are drawn.
        count: Number of other objects in play.
    """

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
        """Tell whether the instruction is true with bodies at these positions [2]: always."""
        return True

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Draw an initial state: the pose of every body in play."""
        chosen = [self.target, *(self.others[i] for i in rng.permutation(len(self.others))[: self.count])]
        while True:
            positions = [_sample_position(rng) for _ in chosen]
            if have_clearance(positions):
                pairs = zip(chosen, positions, strict=True)
                return {each.body: standing_pose(each, position, rng) for each, position in pairs}


@dataclass(frozen=True)
class SpatialRelationArrangement:
    """Two equal objects, of which only the target stands in a relation to a landmark.

    Attributes:
        relation: A key of `RELATIONS` in `tasks.py`; left, right, front and behind are as the front camera sees them.
        target: The object to act on.
        other: The object in the opposite relation.
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
        """Draw an initial state: the pose of every body in play."""
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
            clear = all(have_clearance([landmark, each], LANDMARK_SPACING) for each in (target, other))
            apart = have_clearance([target, other]) and (clear or on_plate)
            if apart and _is_start(target) and _is_start(other) and self._relation_holds(landmark, target, other):
                break
        poses = {
            self.target.body: standing_pose(self.target, target, rng, PLATE_HEIGHT if on_plate == "target" else 0.0),
            self.other.body: standing_pose(self.other, other, rng, PLATE_HEIGHT if on_plate == "other" else 0.0),
        }
        for fixture in self.fixtures:
            poses[fixture.body] = (float(landmark[0]), float(landmark[1]), 0.0, 0.0)
        return poses

    def is_valid(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether the relation holds for the target and not for the other, with bodies at these positions [2]."""
        landmark = positions[self.fixtures[0].body] if self.fixtures else np.array(BIN_CENTRE)
        return self._relation_holds(landmark, positions[self.target.body], positions[self.other.body])

    def _relation_holds(self, landmark: np.ndarray, target: np.ndarray, other: np.ndarray) -> bool:
        """Tell whether the target is clearly in the relation, and the other in its opposite."""
        to_target, to_other = target - landmark, other - landmark
        target_distance, other_distance = np.linalg.norm(to_target), np.linalg.norm(to_other)
        match self.relation:
            case "left" | "right" | "front" | "behind":
                angle = DIRECTIONS[self.relation]
                axis = np.array([np.cos(angle), np.sin(angle)])
                return bool(
                    axis @ to_target >= MIN_RELATION_COSINE * target_distance
                    and axis @ to_other <= -MIN_RELATION_COSINE * other_distance
                )
            case "next_to":
                return bool(target_distance <= NEXT_TO_DISTANCE and other_distance >= FAR_FROM_DISTANCE)
            case "far_from":
                return bool(other_distance <= NEXT_TO_DISTANCE and target_distance >= FAR_FROM_DISTANCE)
            case "near_bin":
                return bool(other_distance - target_distance >= BIN_DISTANCE_DIFFERENCE)
            case "far_bin":
                return bool(target_distance - other_distance >= BIN_DISTANCE_DIFFERENCE)
            case "on_plate":
                return bool(other_distance >= OFF_PLATE_DISTANCE)
            case "off_plate":
                return bool(target_distance >= OFF_PLATE_DISTANCE)
        raise ValueError(f"unknown relation {self.relation!r}")
