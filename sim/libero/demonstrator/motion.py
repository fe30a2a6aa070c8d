"""Targets of the hand, and collision-free waypoints towards them.

Positions are in metres, rotations are matrices [3, 3] from the hand's frame to the world frame. In the hand's frame the
fingers open along y and point along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .privileged_state import PrivilegedState

OPEN_COMMAND, CLOSE_COMMAND = -1.0, 1.0
"""Commands of the gripper; robosuite uses only their sign."""

PALM_OFFSET = 0.026
"""Distance in metres from the tool point (between the fingertips) back to the palm."""

FINGERTIP_OFFSET = 0.0125
"""Distance in metres from the tool point forward to the ends of the fingers."""

HAND_HALF = np.array([0.106, 0.034])
FINGERS_HALF = np.array([0.070, 0.012])
"""Half extents [2] in metres of the palm and of the open fingers: along the opening axis, and across it."""

EMPTY_GRIPPER_WIDTH = 0.002
"""Gripper width in metres below which the closed fingers hold nothing."""

PATH_POINTS = 10
"""Points of a straight path that are checked for clearance."""


@dataclass(frozen=True)
class HandTarget:
    """A target of the hand.

    Attributes:
        position: Tool point [3] in the world frame, in metres.
        rotation: Rotation [3, 3] from the hand's frame to the world frame.
        gripper: `OPEN_COMMAND` or `CLOSE_COMMAND`.
        speed: Speed limit in m/s.
    """

    position: np.ndarray
    rotation: np.ndarray
    gripper: float
    speed: float = 0.30


def downward_rotation(yaw: float) -> np.ndarray:
    """Return the rotation [3, 3] of a hand that points straight down and opens along `yaw` radians in the xy plane."""
    opening_axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    forward = np.array([0.0, 0.0, -1.0])
    return np.stack([np.cross(opening_axis, forward), opening_axis, forward], axis=1)  # [3, 3], columns x, y, z


def nearest_equivalent_yaw(yaw: float, reference: float = np.pi / 2) -> float:
    """Return the yaw, modulo π as both fingers are alike, that is nearest to `reference`; all in radians."""
    return reference + (yaw - reference + np.pi / 2) % np.pi - np.pi / 2


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis times angle [3] in radians of a rotation [3, 3]."""
    cosine = np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0)
    angle = np.arccos(cosine)
    # R - R^T = 2 sin(angle) [axis]_x
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    length = np.linalg.norm(axis)
    if length > 1e-6:
        return axis / length * angle
    if cosine > 0:
        return np.zeros(3)
    # An angle of π: R + 1 = 2 axis axis^T, so the axis is any column that is not zero.
    columns = rotation + np.eye(3)
    axis = columns[:, np.argmax(np.linalg.norm(columns, axis=0))]
    return axis / np.linalg.norm(axis) * np.pi


def rotate_about_vertical(rotation: np.ndarray, angle: float) -> np.ndarray:
    """Return a rotation [3, 3] after a further rotation by `angle` radians about the world's z axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ rotation


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle in radians, 0 to π, between two rotations [3, 3]."""
    return float(np.linalg.norm(rotation_vector(first @ second.T)))


def overlaps_from_above(
    boxes: np.ndarray, centre: np.ndarray, opening_axis: np.ndarray, half: np.ndarray
) -> np.ndarray:
    """Tell which boxes overlap a rectangle when seen from above.

    Separating axis theorem: two convex shapes are disjoint if and only if they are disjoint along the normal of one of
    their edges.

    Args:
        boxes: Corners [n, 8, 3] of boxes in the world frame.
        centre: Centre [2] of the rectangle.
        opening_axis: Unit vector [2] along the first side of the rectangle.
        half: Half extents [2] along `opening_axis` and across it.

    Returns:
        bool [n].
    """
    relative = boxes[:, :, :2] - centre  # [n, 8, 2]
    lateral_axis = np.array([-opening_axis[1], opening_axis[0]])
    corners = np.array([[x, y] for x in (-half[0], half[0]) for y in (-half[1], half[1])])
    rectangle = corners @ [opening_axis, lateral_axis]  # [4, 2]
    overlaps = np.ones(len(boxes), dtype=bool)
    for direction in (opening_axis, lateral_axis):
        along = relative @ direction  # [n, 8]
        reach = np.abs(rectangle @ direction).max()
        overlaps &= (along.min(1) < reach) & (along.max(1) > -reach)
    for corner in (1, 2, 4):  # the three edges of a box at its first corner
        edge = relative[:, corner] - relative[:, 0]  # [n, 2]
        normal = np.stack([-edge[:, 1], edge[:, 0]], axis=1)  # [n, 2]
        along = np.einsum("nkc,nc->nk", relative, normal)  # [n, 8]
        reach = np.abs(normal @ rectangle.T).max(1)  # [n]
        # A vertical edge is a point from above: it has no normal and separates nothing.
        overlaps &= (along.min(1) < reach) & (along.max(1) > -reach) | (np.linalg.norm(edge, axis=1) < 1e-6)
    return overlaps


def count_obstructions(boxes: np.ndarray, centre: np.ndarray, yaw: float, height: float) -> int:
    """Return how many boxes an open hand that points down would touch, palm and fingers counted separately.

    Args:
        boxes: Corners [n, 8, 3] of the obstacles' boxes.
        centre: Position [2] of the tool point.
        yaw: Direction in radians along which the fingers open.
        height: Height of the tool point in metres.
    """
    opening_axis = np.array([np.cos(yaw), np.sin(yaw)])
    top = boxes[:, :, 2].max(1)  # [n]
    palm = overlaps_from_above(boxes, centre, opening_axis, HAND_HALF + 0.006) & (top > height + PALM_OFFSET)
    fingers = overlaps_from_above(boxes, centre, opening_axis, FINGERS_HALF + 0.004) & (top > height - FINGERTIP_OFFSET)
    return int(palm.sum() + fingers.sum())


def clearance_height(boxes: np.ndarray, start: np.ndarray, end: np.ndarray, load_depth: float, width: float) -> float:
    """Return the height that the tool point needs on a straight path over all boxes, its present place included.

    Boxes within 0.05 m of the path's end do not count: the hand goes down there.

    Args:
        boxes: Corners [n, 8, 3] of the obstacles' boxes.
        start: Start [2] of the path.
        end: End [2] of the path.
        load_depth: How far the hand, or what it holds, reaches below the tool point, in metres.
        width: How far the hand's fingers, or what it holds, reach sideways, in metres.

    Returns:
        Height in metres; -inf if nothing is near the path.
    """
    if not len(boxes):
        return -np.inf
    low, high = boxes[:, :, :2].min(1), boxes[:, :, :2].max(1)  # [n, 2] each
    top = boxes[:, :, 2].max(1)  # [n]
    path = start + np.linspace(0.0, 1.0, PATH_POINTS)[:, None] * (end - start)  # [PATH_POINTS, 2]
    path = np.concatenate([path[:1], path[np.linalg.norm(path - end, axis=1) > 0.05]])  # [p, 2]
    gap = np.maximum(np.maximum(low - path[:, None], path[:, None] - high), 0.0)  # [p, n, 2]
    gap = np.linalg.norm(gap, axis=2).min(0)  # [n], horizontal distance of each box from the path
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
    """Return the next waypoint [3] on the way to a goal: up over obstacles, across, and down a funnel.

    Args:
        state: Where the hand and the obstacles are.
        goal: Goal [3] of the tool point in the world frame.
        rotation: Goal rotation [3, 3] of the hand.
        load_depth: How far the hand, or what it holds, reaches below the tool point, in metres.
        width: How far the hand's fingers, or what it holds, reach sideways, in metres.
        above: Height in metres above the goal at which the funnel begins.
        descent_radius: Horizontal distance in metres from the goal within which the hand goes all the way down, once
            its rotation is within 0.1 radians of `rotation`.
        ignored: Owners whose boxes are no obstacles.
    """
    position, current_rotation = state.tool_pose()
    lateral_distance = float(np.linalg.norm(goal[:2] - position[:2]))
    funnel = np.clip((lateral_distance - descent_radius) / 0.02, 0.0, 1.0)
    rotation_error = angle_between(rotation, current_rotation)
    funnel = max(funnel, np.clip((rotation_error - 0.10) / 0.2, 0.0, 1.0))
    height = goal[2] + above * funnel
    if lateral_distance > 0.03 or rotation_error > 0.5:
        boxes = state.obstacles(*ignored)
        height = max(height, clearance_height(boxes, position[:2], goal[:2], load_depth, width))
    # Move sideways only as far as the hand is high enough already.
    free = np.clip(1.0 - (height - position[2] - 0.01) / 0.03, 0.0, 1.0) if lateral_distance > 0.03 else 1.0
    return np.array([*(position[:2] + free * (goal[:2] - position[:2])), height])
