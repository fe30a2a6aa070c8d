"""Where the hand should go next, and the way there over whatever stands between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .privileged_state import PrivilegedState

OPEN_COMMAND, CLOSE_COMMAND = -1.0, 1.0
"""The gripper's commands: robosuite takes their sign."""

PALM_OFFSET = 0.026
"""How far the palm is behind the point between the fingertips, and the fingers' tips before it, in metres."""
FINGERTIP_OFFSET = 0.0125

HAND_HALF = np.array([0.106, 0.034])
FINGERS_HALF = np.array([0.070, 0.012])
"""Half extents across the hand of the palm and of the open fingers: along their opening, and the other way."""

EMPTY_GRIPPER_WIDTH = 0.002
"""Opening below which the closed fingers hold nothing, in metres."""

WAY_POINTS = 10


@dataclass(frozen=True)
class HandTarget:
    """A target for the hand: position [3], rotation [3, 3], the gripper's command and the greatest speed in m/s."""

    position: np.ndarray
    rotation: np.ndarray
    gripper: float
    speed: float = 0.30


def downward_rotation(yaw: float) -> np.ndarray:
    """Return the rotation of a hand that points straight down and opens along the angle `yaw` in the table's plane."""
    opening_axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    ahead = np.array([0.0, 0.0, -1.0])
    return np.stack([np.cross(opening_axis, ahead), opening_axis, ahead], axis=1)


def nearest_equivalent_yaw(yaw: float, reference: float = np.pi / 2) -> float:
    """Return `yaw` or the same half a turn further, whichever is nearer to `reference`: both fingers are alike."""
    return reference + (yaw - reference + np.pi / 2) % np.pi - np.pi / 2


def rotation_vector(turn: np.ndarray) -> np.ndarray:
    """Return axis times angle [3] of a rotation [3, 3]."""
    cosine = np.clip((np.trace(turn) - 1.0) / 2.0, -1.0, 1.0)
    angle = np.arccos(cosine)
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    length = np.linalg.norm(axis)
    if length > 1e-6:
        return axis / length * angle
    if cosine > 0:
        return np.zeros(3)
    # Half a turn: the axis is the column of R + 1 that is not zero.
    columns = turn + np.eye(3)
    axis = columns[:, np.argmax(np.linalg.norm(columns, axis=0))]
    return axis / np.linalg.norm(axis) * np.pi


def rotate_about_vertical(rotation: np.ndarray, angle: float) -> np.ndarray:
    """Return a rotation turned about the vertical by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ rotation


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle in radians between two rotations."""
    return float(np.linalg.norm(rotation_vector(first @ second.T)))


def overlaps_from_above(
    boxes: np.ndarray, centre: np.ndarray, opening_axis: np.ndarray, half: np.ndarray
) -> np.ndarray:
    """Tell for boxes [n, 8, 3] which of them are above or below a rectangle.

    It lies around `centre` [2], its first half extent along the direction `opening_axis` [2]. Two convex shapes are apart if
    and only if they are apart across one of their edges.
    """
    relative = boxes[:, :, :2] - centre
    across = np.array([-opening_axis[1], opening_axis[0]])
    rectangle = np.array([[x, y] for x in (-half[0], half[0]) for y in (-half[1], half[1])]) @ [opening_axis, across]
    meets = np.ones(len(boxes), dtype=bool)
    for direction in (opening_axis, across):
        along = relative @ direction
        reach = np.abs(rectangle @ direction).max()
        meets &= (along.min(1) < reach) & (along.max(1) > -reach)
    for corner in (1, 2, 4):  # the box's three edges from its first corner
        edge = relative[:, corner] - relative[:, 0]
        normal = np.stack([-edge[:, 1], edge[:, 0]], axis=1)
        along = np.einsum("nkc,nc->nk", relative, normal)
        reach = np.abs(normal @ rectangle.T).max(1)
        meets &= (along.min(1) < reach) & (along.max(1) > -reach) | (np.linalg.norm(edge, axis=1) < 1e-6)
    return meets


def count_obstructions(boxes: np.ndarray, centre: np.ndarray, yaw: float, height: float) -> int:
    """Return how many boxes are in the way of an open hand that points down at a place `centre` [2] and `height`."""
    opening_axis = np.array([np.cos(yaw), np.sin(yaw)])
    top = boxes[:, :, 2].max(1)
    palm = overlaps_from_above(boxes, centre, opening_axis, HAND_HALF + 0.006) & (top > height + PALM_OFFSET)
    fingers = overlaps_from_above(boxes, centre, opening_axis, FINGERS_HALF + 0.004) & (top > height - FINGERTIP_OFFSET)
    return int(palm.sum() + fingers.sum())


def clearance_height(boxes: np.ndarray, start: np.ndarray, end: np.ndarray, load_depth: float, width: float) -> float:
    """Return how high the hand must be to get from `start` to `end` [2] over all boxes, its own place included.

    `load_depth` is how far it, or what it holds, reaches below the point between its fingertips, and `width` how far that
    reaches aside. What stands at the end does not count: that is where it is to go down.
    """
    if not len(boxes):
        return -np.inf
    low, high = boxes[:, :, :2].min(1), boxes[:, :, :2].max(1)
    top = boxes[:, :, 2].max(1)
    way = start + np.linspace(0.0, 1.0, WAY_POINTS)[:, None] * (end - start)
    way = np.concatenate([way[:1], way[np.linalg.norm(way - end, axis=1) > 0.05]])
    gap = np.maximum(np.maximum(low - way[:, None], way[:, None] - high), 0.0)
    gap = np.linalg.norm(gap, axis=2).min(0)
    under_load = top[gap < width + 0.012] + load_depth + 0.012
    under_palm = top[gap < HAND_HALF[0]] - PALM_OFFSET + 0.012
    return float(max([*under_load, *under_palm], default=-np.inf))


def approach_waypoint(
    state: PrivilegedState,
    goal: np.ndarray,
    rotation: np.ndarray,
    *,
    load_depth: float = FINGERTIP_OFFSET,
    width: float = 0.02,
    above: float = 0.06,
    descent_radius: float = 0.006,
    ignored: tuple[str, ...] = (),
) -> np.ndarray:
    """Return where to head for now on the way to `goal` [3]: up over what is in the way, across, and down a funnel.

    The hand goes down once it is within `descent_radius` metres beside the goal and turned as it should be.
    """
    position, turn = state.tool_pose()
    lateral_distance = float(np.linalg.norm(goal[:2] - position[:2]))
    funnel = np.clip((lateral_distance - descent_radius) / 0.02, 0.0, 1.0)
    rotation_error = angle_between(rotation, turn)
    funnel = max(funnel, np.clip((rotation_error - 0.10) / 0.2, 0.0, 1.0))
    height = goal[2] + above * funnel
    if lateral_distance > 0.03 or rotation_error > 0.5:
        boxes = state.obstacles(*ignored)
        height = max(height, clearance_height(boxes, position[:2], goal[:2], load_depth, width))
    # Across only as far as it is high enough already.
    free = np.clip(1.0 - (height - position[2] - 0.01) / 0.03, 0.0, 1.0) if lateral_distance > 0.03 else 1.0
    return np.array([*(position[:2] + free * (goal[:2] - position[:2])), height])
