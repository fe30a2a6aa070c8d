"""Where to take hold of what: a table of objects, and the geometry that turns a line of it into a pose of the hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ....errors import InputError, suggest
from .motion import FINGERTIP_OFFSET, PALM_OFFSET, count_obstructions, downward_rotation, nearest_equivalent_yaw

MAX_GRASP_WIDTH = 0.072
"""The widest thing that is taken between the fingers, in metres; they open to 0.08."""

YAW_COUNT = 36

COMFORTABLE_REACH = 0.62
"""How far from the arm's foot it still reaches easily, in metres."""


@dataclass(frozen=True)
class GraspSpec:
    """How to take hold of one kind of object from above.

    `across` takes its middle between the fingers; `rim` takes a wall, one finger inside. `depth` is how far the point
    between the fingertips goes below the object's top, in metres; `inset` how far from the outermost edge to the
    middle of the wall.
    """

    kind: Literal["across", "rim"] = "across"
    depth: float = PALM_OFFSET - 0.004
    inset: float = 0.006

    def __post_init__(self) -> None:
        if not 0.0 < self.depth < PALM_OFFSET:
            fix = "Deeper, the palm would press on it."
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
    "moka_pot": GraspSpec("across", depth=0.008),  # the knob on its lid: the pot itself is as wide as the fingers open
    "orange_juice": CARTON,
    "plate": GraspSpec("rim", depth=0.008),
    "porcelain_mug": GraspSpec("rim", depth=0.020, inset=0.005),
    "red_coffee_mug": GraspSpec("rim", depth=0.020, inset=0.005),
    "salad_dressing": BOTTLE,
    "tomato_sauce": CAN,
    "white_yellow_mug": GraspSpec("rim", depth=0.020, inset=0.006),
    "wine_bottle": GraspSpec("across"),
}
"""Every object that a task of the four suites moves, by its kind."""


def find_grasp_spec(object_name: str) -> GraspSpec:
    """Return how to hold a thing, such as `milk_1`; an unknown kind is an InputError with the nearest one."""
    kind = object_name.rsplit("_", 1)[0]
    if kind not in GRASP_SPECS:
        raise InputError(
            f"object {object_name}", got=f"kind {kind}", expected="one of the table", fix=suggest(kind, GRASP_SPECS)
        )
    return GRASP_SPECS[kind]


Candidate = tuple[float, np.ndarray, float, float]
"""A yaw in radians, a place [2], the width between the fingers and a height, in metres."""


@dataclass(frozen=True)
class Grasp:
    """A pose of the hand about an object: position [3], rotation [3, 3], and the candidate's yaw that it comes from."""

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
    """Return the best grasp of an object, given its boxes and the obstacles' [n, 8, 3]; None if there is none.

    The best is free of obstacles, then narrow, then a small turn from the yaw `home_yaw` of the hand, in radians, and not
    far from the arm's foot `base` [2]. `avoid_direction` [2] is a direction along which the fingers should not open where the
    object goes; `failed_yaws` are yaws that failed.
    """
    candidates = list(
        _across_candidates(grasp_spec, boxes) if grasp_spec.kind == "across" else _rim_candidates(grasp_spec, boxes)
    )

    def cost(candidate: Candidate) -> float:
        yaw, centre, width, height = candidate
        others = np.concatenate([obstacles, _own_obstacles(boxes, centre, yaw, width, height)])
        total_cost = 10.0 * count_obstructions(others, centre, yaw, height) + 20.0 * width
        total_cost += 0.3 * abs(nearest_equivalent_yaw(yaw, home_yaw) - home_yaw)
        if base is not None:
            # Far out the arm is stretched, and what it then cannot do is turn and lift.
            total_cost += 8.0 * max(float(np.linalg.norm(centre - base)) - COMFORTABLE_REACH, 0.0)
        if avoid_direction is not None:
            total_cost += 3.0 * float(abs(np.array([np.cos(yaw), np.sin(yaw)]) @ avoid_direction))
        return total_cost + sum(
            5.0 for each in failed_yaws if abs(np.arctan2(np.sin(yaw - each), np.cos(yaw - each))) < 0.2
        )

    if not candidates:
        return None
    yaw, centre, _, height = min(candidates, key=cost)
    return Grasp(np.array([*centre, height]), downward_rotation(nearest_equivalent_yaw(yaw, home_yaw)), yaw)


def _across_candidates(grasp_spec: GraspSpec, boxes: np.ndarray) -> Iterator[Candidate]:
    top, bottom = boxes[:, :, 2].max(), boxes[:, :, 2].min()
    height = max(top - grasp_spec.depth, bottom + FINGERTIP_OFFSET - 0.004)
    # What the fingers' pads meet, not what the object is elsewhere.
    held = boxes[(boxes[:, :, 2].max(1) > height - 0.006) & (boxes[:, :, 2].min(1) < height + 0.008)]
    points = held[:, :, :2].reshape(-1, 2)
    for yaw in np.linspace(-np.pi / 2, np.pi / 2, YAW_COUNT, endpoint=False):
        opening_axis = np.array([np.cos(yaw), np.sin(yaw)])
        lateral_axis = np.array([-opening_axis[1], opening_axis[0]])
        along, across = points @ opening_axis, points @ lateral_axis
        width = float(np.ptp(along))
        if width > MAX_GRASP_WIDTH:
            continue
        centre = opening_axis * (along.max() + along.min()) / 2 + lateral_axis * (across.max() + across.min()) / 2
        yield yaw, centre, width, height


def _rim_candidates(grasp_spec: GraspSpec, boxes: np.ndarray) -> Iterator[Candidate]:
    top = boxes[:, :, 2].max()
    points = boxes[boxes[:, :, 2].max(1) > top - 0.012][:, :, :2].reshape(-1, 2)
    middle = (points.max(0) + points.min(0)) / 2
    radius = float(np.ptp(points, axis=0).mean() / 2)
    for yaw in np.linspace(-np.pi, np.pi, YAW_COUNT, endpoint=False):
        outward = np.array([np.cos(yaw), np.sin(yaw)])
        yield yaw, middle + outward * (radius - grasp_spec.inset), 0.0, top - grasp_spec.depth


def _own_obstacles(boxes: np.ndarray, centre: np.ndarray, yaw: float, width: float, height: float) -> np.ndarray:
    """Return those of the object's own boxes that stand beside what is held, where a finger would come down."""
    if width == 0.0:
        return boxes[:0]
    along = (boxes[:, :, :2] - centre) @ np.array([np.cos(yaw), np.sin(yaw)])
    beside = (along.min(1) > width / 2 + 0.004) | (along.max(1) < -width / 2 - 0.004)
    return boxes[beside]
