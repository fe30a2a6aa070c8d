"""The demonstrator's skills: pick and place, push, pull, press and pour.

Each skill maps the present state of hand and desk to the tool's next target, without clock or memory. A policy without
memory can imitate it, and it recovers from a push, a slip or a missed grasp. Lengths are in metres and angles in
radians, in the arm's base frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arm import PAN_AXIS_POSITION
from ..fixtures import Basin, Button, DeskState, Drawer, Mat
from ..objects import SHAPES, DeskObject
from ..tasks.goals import FILLABLE_FRACTION, OPEN_FRACTION
from ..tasks.receptacles import DROP_FROM_CARRY_HEIGHT, Receptacle

OPEN_ANGLE, SQUEEZE_ANGLE, MISSED_GRASP_ANGLE = 0.90, -0.12, 0.12
"""Gripper angles: open; commanded when closing on an object; and below which a grasp without contact has missed."""

CARRY_HEIGHT, RELEASE_HEIGHT, TRAVEL_HEIGHT, POUR_HEIGHT = 0.085, 0.075, 0.075, 0.095
"""Heights of the tool: carrying an object, after a drop, moving without one; and of a cup that is poured."""

GRIP_RATE = 0.16
"""How much the gripper's angle changes in one control step."""

MARGIN = 0.009
"""Gap between the fixed finger and the object before the jaw closes."""

MAX_STRAIGHT_TURN = np.deg2rad(60)
"""Largest angle around the base that the hand covers in a straight line."""

POUR_PITCH_RATE, MAX_POUR_PITCH = 0.05, 1.30
"""Pouring: how much the pitch changes in one control step, and its largest value."""

POUR_OFFSET = 0.040
"""How far beyond the basin, seen from the base, the cup is held to pour."""


@dataclass(frozen=True)
class HandState:
    """The present state of the hand, and the episode's speed and aim.

    Attributes:
        tool_position: Position [3] of the tool.
        gripper: Angle of the gripper.
        pitch: Outward tilt of the fingers from straight down.
        speed: Speed of free motions, in m/s.
        aim: Horizontal error [2] with which it aims at grasps.
    """

    tool_position: np.ndarray
    gripper: float
    pitch: float
    speed: float
    aim: np.ndarray


@dataclass(frozen=True)
class ToolTarget:
    """Where the tool should go next.

    Attributes:
        position: Target position [3] of the tool.
        speed: Largest speed, in m/s.
        gripper: Next angle of the gripper.
        pitch: Pitch of the hand; None for the usual one at the position.
        noise_scale: Factor on the demonstrator's noise.
    """

    position: np.ndarray
    speed: float
    gripper: float
    pitch: float | None = None
    noise_scale: float = 1.0


def pick_and_place(desk: DeskState, hand: HandState, target_object: DeskObject, receptacle: Receptacle) -> ToolTarget:
    """Pick an object and release it at a receptacle.

    Args:
        desk: The desk.
        hand: The hand.
        target_object: The object.
        receptacle: Where to place it.
    """
    object_position, placement_point = desk.position(target_object.body), receptacle.placement_point(desk)
    contact_count = desk.finger_contacts(target_object.body)
    offset = np.linalg.norm(object_position[:2] - placement_point[:2])
    height = object_position[2] - target_object.rest_height - placement_point[2] - receptacle.release_height
    if contact_count == 2 and offset > _lowering_tolerance(receptacle, height):
        return ToolTarget(
            _carry_position(hand, object_position, placement_point),
            hand.speed,
            max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE),
        )
    if contact_count == 2 and height > 0.004:
        below = hand.tool_position + np.array([*(placement_point - object_position)[:2], -height])
        return ToolTarget(below, 0.12, max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE))
    if offset < receptacle.release_tolerance and height < 0.012:
        return _release(hand, object_position, receptacle)
    return _approach_and_grasp(desk, hand, target_object)


def _lowering_tolerance(receptacle: Receptacle, height: float) -> float:
    """Return how far aside a carried object may be: less if it is higher above its release, to lower it straight."""
    if receptacle.release_height == DROP_FROM_CARRY_HEIGHT:
        return 0.014
    return float(
        np.interp(height, (0.01, 0.05), (receptacle.release_tolerance - 0.002, 0.5 * receptacle.release_tolerance))
    )


def _carry_position(hand: HandState, object_position: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Return where to carry an object next [3]: up first, and sideways the more the higher the tool is."""
    sideways = np.clip((hand.tool_position[2] - 0.035) / 0.035, 0.0, 1.0)
    return np.array([*(hand.tool_position[:2] + sideways * (destination[:2] - object_position[:2])), CARRY_HEIGHT])


def _release(hand: HandState, object_position: np.ndarray, receptacle: Receptacle) -> ToolTarget:
    gripper = min(hand.gripper + GRIP_RATE, OPEN_ANGLE)
    if receptacle.release_height == DROP_FROM_CARRY_HEIGHT:
        return ToolTarget(np.array([*hand.tool_position[:2], max(hand.tool_position[2], RELEASE_HEIGHT)]), 0.1, gripper)
    # The moving jaw opens away from the object; the fixed finger steps back before the hand rises.
    away = -tangent(object_position) * 0.008
    rise = 0.02 if hand.gripper > OPEN_ANGLE - 0.2 else 0.0
    return ToolTarget(hand.tool_position + np.array([*away, rise]), 0.06, gripper)


def tangent(object_position: np.ndarray) -> np.ndarray:
    """Return the unit vector [2] in which the jaws close at a position: from the fixed finger to the moving one."""
    angle = np.arctan2(object_position[1] - PAN_AXIS_POSITION[1], object_position[0] - PAN_AXIS_POSITION[0])
    return np.array([-np.sin(angle), np.cos(angle)])


def _approach_and_grasp(
    desk: DeskState, hand: HandState, target_object: DeskObject, pitch: float | None = None
) -> ToolTarget:
    """Come down over an object with open jaws, and close them."""
    object_position, contact_count = desk.position(target_object.body), desk.finger_contacts(target_object.body)
    # The tool's site is at the fixed finger: it goes beside the object, so that the jaws close on the centre.
    beside = (SHAPES[target_object.shape][1][0] + MARGIN) * tangent(object_position)
    grasp = np.array([*(object_position[:2] - beside + hand.aim), max(object_position[2] - 0.003, 0.010)])
    lateral_distance = np.linalg.norm(hand.tool_position[:2] - grasp[:2])
    closing = hand.gripper < OPEN_ANGLE - 0.25
    aligned = lateral_distance < (0.018 if closing else 0.006) and abs(hand.tool_position[2] - grasp[2]) < (
        0.015 if closing else 0.006
    )
    if aligned and not (hand.gripper < MISSED_GRASP_ANGLE and contact_count == 0):
        return ToolTarget(grasp, 0.05, max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE), pitch)
    # A funnel: far from the grasp stay above everything, and come down as the tool comes over it.
    above = np.clip((lateral_distance - 0.004) * 6.0, 0.0, 0.06)
    gripper = min(hand.gripper + GRIP_RATE, OPEN_ANGLE)
    return ToolTarget(np.array([*grasp[:2], grasp[2] + above]), hand.speed, gripper, pitch)


def _lower_closed_fingers(hand: HandState, start: np.ndarray, near: float = 0.02) -> ToolTarget:
    """Bring the closed fingers down to `start` [3] from above; farther than `near` from it, rise first."""
    lateral_distance = np.linalg.norm(hand.tool_position[:2] - start[:2])
    free = hand.tool_position[2] > TRAVEL_HEIGHT - 0.02
    # Low down, the fingers may still be around an object that was just released.
    gripper = max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE) if free or lateral_distance < 0.012 else hand.gripper
    if lateral_distance > near and not free:
        return ToolTarget(np.array([*hand.tool_position[:2], TRAVEL_HEIGHT]), hand.speed, gripper, noise_scale=0.5)
    start = _waypoint_around_base(hand.tool_position, start)
    ready = hand.gripper < MISSED_GRASP_ANGLE
    above = np.clip((lateral_distance - 0.003) * 6.0, 0.0 if ready else 0.03, max(TRAVEL_HEIGHT - start[2], 0.0))
    return ToolTarget(np.array([*start[:2], start[2] + above]), hand.speed, gripper, noise_scale=0.5)


def _waypoint_around_base(tool_position: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Return where to go first [3] so that the path leads around the arm's base and not over it."""
    (tool_angle, tool_radius), (angle, radius) = _polar(tool_position), _polar(destination)
    turn = angle - tool_angle  # Not wrapped: the pan joint does not reach through the back.
    if abs(turn) < MAX_STRAIGHT_TURN:
        return destination
    angle, radius = tool_angle + np.sign(turn) * MAX_STRAIGHT_TURN, max(0.5 * (tool_radius + radius), 0.16)
    return np.array([*(PAN_AXIS_POSITION + radius * np.array([np.cos(angle), np.sin(angle)])), TRAVEL_HEIGHT])


def _polar(point: np.ndarray) -> tuple[float, float]:
    """Return the angle and the radius of a point [3] around the pan axis."""
    x, y = point[:2] - PAN_AXIS_POSITION
    return float(np.arctan2(y, x)), float(np.hypot(x, y))


def push(hand: HandState, contact: np.ndarray, direction: np.ndarray, behind: float, speed: float = 0.10) -> ToolTarget:
    """Push with closed fingers.

    Args:
        hand: The hand.
        contact: Point [3] to push at.
        direction: Horizontal unit vector [2] in which to push.
        behind: How far behind the contact the fingers come down.
        speed: Speed of the push, in m/s.
    """
    relative = hand.tool_position[:2] - contact[:2]
    along = relative @ direction
    lateral_distance = np.linalg.norm(relative - along * direction)
    low = hand.tool_position[2] < contact[2] + 0.010
    if low and lateral_distance < 0.012 and -behind - 0.012 < along < 0.0:
        return ToolTarget(np.array([*(contact[:2] + 0.012 * direction), contact[2]]), speed, SQUEEZE_ANGLE)
    return _lower_closed_fingers(hand, np.array([*(contact[:2] - behind * direction), contact[2]]))


def push_onto(desk: DeskState, hand: HandState, target_object: DeskObject, mat: Mat) -> ToolTarget:
    """Push an object onto the mat; step back before rising, so that the fingers do not lift its rim."""
    object_position = desk.position(target_object.body)
    if mat.contains(desk, target_object.body):
        away = (hand.tool_position - object_position)[:2]
        back = hand.tool_position[:2] + 0.02 * away / max(np.linalg.norm(away), 1e-6)
        return ToolTarget(np.array([*back, hand.tool_position[2]]), 0.10, SQUEEZE_ANGLE)
    to_mat = (mat.placement_point(desk) - object_position)[:2]
    return push(hand, object_position, to_mat / max(np.linalg.norm(to_mat), 1e-6), behind=0.044)


def pull_open(desk: DeskState, hand: HandState, drawer: Drawer) -> ToolTarget:
    """Hook a drawer's handle from behind, and push it outward."""
    return push(hand, drawer.handle_position(desk), drawer.pull_direction(desk), behind=0.019)


def push_shut(desk: DeskState, hand: HandState, drawer: Drawer) -> ToolTarget:
    """Push a drawer's handle inward."""
    return push(hand, drawer.handle_position(desk), -drawer.pull_direction(desk), behind=0.026)


def is_hooked(desk: DeskState, hand: HandState, drawer: Drawer) -> bool:
    """Tell whether the closed fingers are down at a drawer's handle."""
    lateral_distance = np.linalg.norm((hand.tool_position - drawer.handle_position(desk))[:2])
    return bool(hand.gripper < MISSED_GRASP_ANGLE and lateral_distance < 0.035 and hand.tool_position[2] < 0.05)


def unhook(hand: HandState) -> ToolTarget:
    """Leave a handle, straight up."""
    return ToolTarget(np.array([*hand.tool_position[:2], TRAVEL_HEIGHT]), hand.speed, SQUEEZE_ANGLE)


def has_room(desk: DeskState, hand: HandState, drawer: Drawer) -> bool:
    """Tell whether a drawer is open enough to fill; while the fingers hook its handle, it has to be fully open."""
    return drawer.opening(desk) > (OPEN_FRACTION + 0.05 if is_hooked(desk, hand, drawer) else FILLABLE_FRACTION)


def press(desk: DeskState, hand: HandState, button: Button) -> ToolTarget:
    """Press a button from above with closed fingers."""
    top = button.top(desk)
    if np.linalg.norm(hand.tool_position[:2] - top[:2]) < 0.010 and hand.gripper < MISSED_GRASP_ANGLE:
        return ToolTarget(top - [0.0, 0.0, 0.012], 0.10, SQUEEZE_ANGLE)
    return _lower_closed_fingers(hand, np.array([*top[:2], top[2] + 0.020]))


def pour(desk: DeskState, hand: HandState, cup: DeskObject, basin: Basin) -> ToolTarget:
    """Pick a cup upright, and tilt the hand outward behind the basin, so that the cup tips towards the arm."""
    object_position, placement_point = desk.position(cup.body), basin.placement_point(desk)
    if desk.finger_contacts(cup.body) < 2:
        return _approach_and_grasp(desk, hand, cup, pitch=0.0)
    from_base = placement_point[:2] - PAN_AXIS_POSITION  # [2]
    outward = from_base / np.linalg.norm(from_base)
    above = np.array([*(placement_point[:2] + POUR_OFFSET * outward), POUR_HEIGHT])
    gripper = max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE)
    if np.linalg.norm(above[:2] - object_position[:2]) > (0.012 if hand.pitch < 0.5 else 0.03):
        return ToolTarget(
            _carry_position(hand, object_position, above),
            0.8 * hand.speed,
            gripper,
            pitch=min(max(hand.pitch, 0.0), 0.4),
        )
    return ToolTarget(
        hand.tool_position + above - object_position,
        0.12,
        gripper,
        pitch=min(hand.pitch + POUR_PITCH_RATE, MAX_POUR_PITCH),
    )
