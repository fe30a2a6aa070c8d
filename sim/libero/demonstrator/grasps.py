"""Grasps from above: a table of how to grasp each object, and the search for the best hand pose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ....errors import InputError, suggest
from .motion import FINGERTIP_OFFSET, PALM_OFFSET, count_obstructions, downward_rotation, nearest_equivalent_yaw

MAX_GRASP_WIDTH = 0.072
"""Width in metres of the widest object that the fingers grasp; they open to 0.08."""

YAW_COUNT = 36
"""Yaws that are tried, evenly spaced."""

COMFORTABLE_REACH = 0.62
"""Distance in metres from the arm's base within which the arm is not stretched."""


@dataclass(frozen=True)
class GraspSpec:
    """How to grasp one kind of object from above.

    Attributes:
        kind: `across` grasps the middle of the object between the fingers; `rim` grasps a wall, one finger inside.
        depth: Distance in metres of the tool point below the object's top.
        inset: Distance in metres from the outermost edge to the middle of the wall, for `rim`.

    Raises:
        InputError: The palm would touch the object at this depth.
    """

    kind: Literal["across", "rim"] = "across"
    depth: float = PALM_OFFSET - 0.004
    inset: float = 0.006

    def __post_init__(self) -> None:
        if not 0.0 < self.depth < PALM_OFFSET:
            fix = "Use a smaller depth: the palm must not touch the object."
            raise InputError("depth", got=self.depth, expected=f"above 0 and below {PALM_OFFSET} m", fix=fix)


CAN = BOTTLE = CARTON = GraspSpec("across")
FLAT_BOX = GraspSpec("across", depth=0.010)
KNOB = GraspSpec("across", depth=0.018)

GRASP_SPECS = {
    "akita_black_bowl": GraspSpec("rim", depth=0.020),
    "alphabet_soup": CAN,
    "bbq_sauce": BOTTLE,
    "black_book": GraspSpec("across"),
    "butter": FLAT_BOX,
    "chocolate_pudding": FLAT_BOX,
    "cookies": FLAT_BOX,
    "cream_cheese": FLAT_BOX,
    "glazed_rim_porcelain_ramekin": GraspSpec("rim", depth=0.015),
    "ketchup": BOTTLE,
    "milk": CARTON,
    "moka_pot": GraspSpec("across", depth=0.008),  # the knob of its lid: the pot itself is too wide
    "orange_juice": CARTON,
    "plate": GraspSpec("rim", depth=0.008),
    "porcelain_mug": GraspSpec("rim", depth=0.020, inset=0.005),
    "red_coffee_mug": GraspSpec("rim", depth=0.020, inset=0.005),
    "salad_dressing": BOTTLE,
    "tomato_sauce": CAN,
    "white_yellow_mug": GraspSpec("rim", depth=0.020, inset=0.006),
    "wine_bottle": GraspSpec("across"),
}
"""How to grasp each kind of object that a task of the four suites moves."""


def find_grasp_spec(object_name: str) -> GraspSpec:
    """Return how to grasp an object.

    Args:
        object_name: Name in the problem file, such as `milk_1`: the kind and a number.

    Raises:
        InputError: The kind is not in `GRASP_SPECS`; the error suggests the nearest one.
    """
    kind = object_name.rsplit("_", 1)[0]
    if kind not in GRASP_SPECS:
        fix = suggest(kind, GRASP_SPECS)
        raise InputError(f"object {object_name}", got=f"kind {kind}", expected="a kind in GRASP_SPECS", fix=fix)
    return GRASP_SPECS[kind]


class GraspCandidate(NamedTuple):
    """A hand pose that could grasp an object, pointing straight down.

    Attributes:
        yaw: Direction in radians along which the fingers open, in the xy plane.
        centre: Position [2] of the tool point, in metres.
        width: Width of the grasped part between the fingers, in metres; 0 for the wall of a rim.
        height: Height of the tool point, in metres.
    """

    yaw: float
    centre: np.ndarray
    width: float
    height: float


@dataclass(frozen=True)
class Grasp:
    """A hand pose that grasps an object.

    Attributes:
        position: Tool point [3] in the world frame, in metres.
        rotation: Rotation [3, 3] from the hand's frame to the world frame.
        yaw: Yaw in radians of the candidate that the pose comes from.
    """

    position: np.ndarray
    rotation: np.ndarray
    yaw: float


def choose_grasp(
    grasp_spec: GraspSpec,
    boxes: np.ndarray,
    obstacles: np.ndarray,
    *,
    home_yaw: float,
    base: np.ndarray | None = None,
    avoid_direction: np.ndarray | None = None,
    failed_yaws: tuple[float, ...] = (),
) -> Grasp | None:
    """Return the candidate of the lowest cost, as a hand pose; None if there is no candidate.

    The cost is dominated by obstructions, then by the width, a stretched arm, and the rotation away from `home_yaw`.

    Args:
        grasp_spec: How to grasp this kind of object.
        boxes: Corners [n, 8, 3] of the boxes of the object's parts, in the world frame.
        obstacles: Corners [m, 8, 3] of all other boxes.
        home_yaw: Yaw in radians of the hand at rest.
        base: Position [2] of the arm's base; None to accept a stretched arm.
        avoid_direction: Unit vector [2] along which the fingers should not open at the receptacle.
        failed_yaws: Yaws in radians of grasps that failed.
    """
    candidates = list(
        _across_candidates(grasp_spec, boxes) if grasp_spec.kind == "across" else _rim_candidates(grasp_spec, boxes)
    )

    def cost(candidate: GraspCandidate) -> float:
        yaw, centre, width, height = candidate
        others = np.concatenate([obstacles, _own_obstacles(boxes, centre, yaw, width)])
        total_cost = 10.0 * count_obstructions(others, centre, yaw, height) + 20.0 * width
        total_cost += 0.3 * abs(nearest_equivalent_yaw(yaw, home_yaw) - home_yaw)
        if base is not None:
            # A stretched arm cannot rotate and lift.
            total_cost += 8.0 * max(float(np.linalg.norm(centre - base)) - COMFORTABLE_REACH, 0.0)
        if avoid_direction is not None:
            total_cost += 3.0 * float(abs(np.array([np.cos(yaw), np.sin(yaw)]) @ avoid_direction))
        return total_cost + sum(
            5.0 for failed in failed_yaws if abs(np.arctan2(np.sin(yaw - failed), np.cos(yaw - failed))) < 0.2
        )

    if not candidates:
        return None
    yaw, centre, _, height = min(candidates, key=cost)
    return Grasp(np.array([*centre, height]), downward_rotation(nearest_equivalent_yaw(yaw, home_yaw)), yaw)


def _across_candidates(grasp_spec: GraspSpec, boxes: np.ndarray) -> Iterator[GraspCandidate]:
    """Yield grasps of the object's middle, one for each yaw at which it fits between the fingers."""
    top, bottom = boxes[:, :, 2].max(), boxes[:, :, 2].min()
    height = max(top - grasp_spec.depth, bottom + FINGERTIP_OFFSET - 0.004)
    # Only the parts at the height of the finger pads count.
    held = boxes[(boxes[:, :, 2].max(1) > height - 0.006) & (boxes[:, :, 2].min(1) < height + 0.008)]
    points = held[:, :, :2].reshape(-1, 2)  # [8 h, 2]
    for yaw in np.linspace(-np.pi / 2, np.pi / 2, YAW_COUNT, endpoint=False):
        opening_axis = np.array([np.cos(yaw), np.sin(yaw)])
        lateral_axis = np.array([-opening_axis[1], opening_axis[0]])
        along, across = points @ opening_axis, points @ lateral_axis  # [8 h] each
        width = float(np.ptp(along))
        if width > MAX_GRASP_WIDTH:
            continue
        centre = opening_axis * (along.max() + along.min()) / 2 + lateral_axis * (across.max() + across.min()) / 2
        yield GraspCandidate(float(yaw), centre, width, height)


def _rim_candidates(grasp_spec: GraspSpec, boxes: np.ndarray) -> Iterator[GraspCandidate]:
    """Yield grasps of the wall of a round object, one for each yaw."""
    top = boxes[:, :, 2].max()
    points = boxes[boxes[:, :, 2].max(1) > top - 0.012][:, :, :2].reshape(-1, 2)  # [8 r, 2], the rim
    middle = (points.max(0) + points.min(0)) / 2
    radius = float(np.ptp(points, axis=0).mean() / 2)
    for yaw in np.linspace(-np.pi, np.pi, YAW_COUNT, endpoint=False):
        outward = np.array([np.cos(yaw), np.sin(yaw)])
        centre = middle + outward * (radius - grasp_spec.inset)
        yield GraspCandidate(float(yaw), centre, 0.0, top - grasp_spec.depth)


def _own_obstacles(boxes: np.ndarray, centre: np.ndarray, yaw: float, width: float) -> np.ndarray:
    """Return the object's own boxes [k, 8, 3] beside the grasped part, where a finger would come down."""
    if width == 0.0:
        return boxes[:0]
    along = (boxes[:, :, :2] - centre) @ np.array([np.cos(yaw), np.sin(yaw)])  # [n, 8]
    is_beside = (along.min(1) > width / 2 + 0.004) | (along.max(1) < -width / 2 - 0.004)
    return boxes[is_beside]
