"""The motions that a demonstrator chains: put, push, press, pour. Each is a function of what is there now.

None keeps a clock or a memory: from the hand's state and the desk's follows where the tool goes next. A policy without
memory can learn it, and a push, a slip or a missed grasp is recovered from. Lengths in metres, angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arm import PAN_AXIS_POSITION
from ..fixtures import Basin, Button, DeskState, Drawer, Mat
from ..goals import FILLABLE_FRACTION, OPEN_FRACTION
from ..objects import SHAPES, DeskObject
from ..receptacles import DROP_FROM_CARRY_HEIGHT, Receptacle

OPEN_ANGLE, SQUEEZE_ANGLE, MISSED_GRASP_ANGLE = 0.90, -0.12, 0.12
"""Gripper angles: open, where it presses to when closing, and where it must have missed."""

CARRY_HEIGHT, RELEASE_HEIGHT, TRAVEL_HEIGHT, POUR_HEIGHT = 0.085, 0.075, 0.075, 0.095
GRIP_RATE = 0.16
"""How far the gripper turns in one control step."""

MARGIN = 0.009
"""Gap between the fixed finger and the object before the jaw closes."""

MAX_STRAIGHT_TURN = np.deg2rad(60)
"""How far around the base the hand goes in a straight line."""

POUR_PITCH_RATE, MAX_POUR_PITCH, POUR_OFFSET = 0.05, 1.30, 0.040
"""How far the hand leans in one step when it pours, how far at most, and how far beyond the bowl the cup is then."""


@dataclass(frozen=True)
class HandState:
    """The hand as it is: tool [3], gripper angle, outward lean; and its habits: speed, and where it aims aside [2]."""

    tool_position: np.ndarray
    gripper: float
    pitch: float
    speed: float
    aim: np.ndarray


@dataclass(frozen=True)
class ToolTarget:
    """Where the tool should go, how fast at most, the gripper's next angle; the usual lean unless one is given."""

    position: np.ndarray
    speed: float
    gripper: float
    pitch: float | None = None
    noise_scale: float = 1.0
    """How much of the demonstrator's disturbance it bears."""


def pick_and_place(desk: DeskState, hand: HandState, target_object: DeskObject, receptacle: Receptacle) -> ToolTarget:
    """Pick a thing and let it go at a place."""
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
    """Return how far aside a carried thing may be: the less the higher it still is, so that it comes down straight."""
    if receptacle.release_height == DROP_FROM_CARRY_HEIGHT:
        return 0.014
    return float(
        np.interp(height, (0.01, 0.05), (receptacle.release_tolerance - 0.002, 0.5 * receptacle.release_tolerance))
    )


def _carry_position(hand: HandState, object_position: np.ndarray, destination: np.ndarray) -> np.ndarray:
    high = np.clip((hand.tool_position[2] - 0.035) / 0.035, 0.0, 1.0)
    return np.array([*(hand.tool_position[:2] + high * (destination[:2] - object_position[:2])), CARRY_HEIGHT])


def _release(hand: HandState, object_position: np.ndarray, receptacle: Receptacle) -> ToolTarget:
    gripper = min(hand.gripper + GRIP_RATE, OPEN_ANGLE)
    if receptacle.release_height == DROP_FROM_CARRY_HEIGHT:
        return ToolTarget(np.array([*hand.tool_position[:2], max(hand.tool_position[2], RELEASE_HEIGHT)]), 0.1, gripper)
    # The jaw opens away by itself; the fixed finger steps back, and only then the hand may rise.
    away = -tangent(object_position) * 0.008
    rise = 0.02 if hand.gripper > OPEN_ANGLE - 0.2 else 0.0
    return ToolTarget(hand.tool_position + np.array([*away, rise]), 0.06, gripper)


def tangent(object_position: np.ndarray) -> np.ndarray:
    """Return the direction [2] in which the jaws close at a position: from the fixed finger to the moving one."""
    angle = np.arctan2(object_position[1] - PAN_AXIS_POSITION[1], object_position[0] - PAN_AXIS_POSITION[0])
    return np.array([-np.sin(angle), np.cos(angle)])


def _approach_and_grasp(
    desk: DeskState, hand: HandState, target_object: DeskObject, pitch: float | None = None
) -> ToolTarget:
    object_position, contact_count = desk.position(target_object.body), desk.finger_contacts(target_object.body)
    # The tool lies at the fixed finger: it goes beside the thing, so that the jaws close on its middle.
    beside = (SHAPES[target_object.shape][1][0] + MARGIN) * tangent(object_position)
    grasp = np.array([*(object_position[:2] - beside + hand.aim), max(object_position[2] - 0.003, 0.010)])
    lateral_distance = np.linalg.norm(hand.tool_position[:2] - grasp[:2])
    closing = hand.gripper < OPEN_ANGLE - 0.25
    aligned = lateral_distance < (0.018 if closing else 0.006) and abs(hand.tool_position[2] - grasp[2]) < (
        0.015 if closing else 0.006
    )
    if aligned and not (hand.gripper < MISSED_GRASP_ANGLE and contact_count == 0):
        return ToolTarget(grasp, 0.05, max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE), pitch)
    # A funnel: far aside stay above everything, come down as the tool comes over the grasp.
    above = np.clip((lateral_distance - 0.004) * 6.0, 0.0, 0.06)
    gripper = min(hand.gripper + GRIP_RATE, OPEN_ANGLE)
    return ToolTarget(np.array([*grasp[:2], grasp[2] + above]), hand.speed, gripper, pitch)


def _lower_closed_fingers(hand: HandState, start: np.ndarray, near: float = 0.02) -> ToolTarget:
    """Bring the closed fingers down to `start` [3] from above; unless `near` aside of it, rise first."""
    lateral_distance = np.linalg.norm(hand.tool_position[:2] - start[:2])
    free = hand.tool_position[2] > TRAVEL_HEIGHT - 0.02
    # Down there the fingers may still be around something that was just let go.
    gripper = max(hand.gripper - GRIP_RATE, SQUEEZE_ANGLE) if free or lateral_distance < 0.012 else hand.gripper
    if lateral_distance > near and not free:
        return ToolTarget(np.array([*hand.tool_position[:2], TRAVEL_HEIGHT]), hand.speed, gripper, noise_scale=0.5)
    start = _waypoint_around_base(hand.tool_position, start)
    ready = hand.gripper < MISSED_GRASP_ANGLE
    above = np.clip((lateral_distance - 0.003) * 6.0, 0.0 if ready else 0.03, max(TRAVEL_HEIGHT - start[2], 0.0))
    return ToolTarget(np.array([*start[:2], start[2] + above]), hand.speed, gripper, noise_scale=0.5)


def _waypoint_around_base(tool_position: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Return where to go first [3], so that the way to a place leads around the arm's base and not over it."""
    (here, radius), (there, far) = (_polar(receptacle) for receptacle in (tool_position, destination))
    turn = there - here  # never through the back, where the first joint does not reach
    if abs(turn) < MAX_STRAIGHT_TURN:
        return destination
    angle, radius = here + np.sign(turn) * MAX_STRAIGHT_TURN, max(0.5 * (radius + far), 0.16)
    return np.array([*(PAN_AXIS_POSITION + radius * np.array([np.cos(angle), np.sin(angle)])), TRAVEL_HEIGHT])


def _polar(receptacle: np.ndarray) -> tuple[float, float]:
    x, y = receptacle[:2] - PAN_AXIS_POSITION
    return float(np.arctan2(y, x)), float(np.hypot(x, y))


def push(hand: HandState, contact: np.ndarray, direction: np.ndarray, behind: float, speed: float = 0.10) -> ToolTarget:
    """Push with closed fingers at `contact` [3] in a horizontal direction [2], coming down `behind` it."""
    relative = hand.tool_position[:2] - contact[:2]
    along = relative @ direction
    lateral_distance = np.linalg.norm(relative - along * direction)
    low = hand.tool_position[2] < contact[2] + 0.010
    if low and lateral_distance < 0.012 and -behind - 0.012 < along < 0.0:
        return ToolTarget(np.array([*(contact[:2] + 0.012 * direction), contact[2]]), speed, SQUEEZE_ANGLE)
    return _lower_closed_fingers(hand, np.array([*(contact[:2] - behind * direction), contact[2]]))


def push_onto(desk: DeskState, hand: HandState, target_object: DeskObject, mat: Mat) -> ToolTarget:
    """Push a thing onto the mat; step back before rising, so that the fingers do not lift its rim."""
    object_position = desk.position(target_object.body)
    if mat.contains(desk, target_object.body):
        away = (hand.tool_position - object_position)[:2]
        back = hand.tool_position[:2] + 0.02 * away / max(np.linalg.norm(away), 1e-6)
        return ToolTarget(np.array([*back, hand.tool_position[2]]), 0.10, SQUEEZE_ANGLE)
    way = (mat.placement_point(desk) - object_position)[:2]
    return push(hand, object_position, way / max(np.linalg.norm(way), 1e-6), behind=0.044)


def pull_open(desk: DeskState, hand: HandState, drawer: Drawer) -> ToolTarget:
    """Hook the handle of a drawer from behind and push it outward."""
    return push(hand, drawer.handle_position(desk), drawer.pull_direction(desk), behind=0.019)


def push_shut(desk: DeskState, hand: HandState, drawer: Drawer) -> ToolTarget:
    """Push the handle of a drawer inward."""
    return push(hand, drawer.handle_position(desk), -drawer.pull_direction(desk), behind=0.026)


def is_hooked(desk: DeskState, hand: HandState, drawer: Drawer) -> bool:
    """Tell whether the closed fingers are down at the handle of a drawer."""
    lateral_distance = np.linalg.norm((hand.tool_position - drawer.handle_position(desk))[:2])
    return bool(hand.gripper < MISSED_GRASP_ANGLE and lateral_distance < 0.035 and hand.tool_position[2] < 0.05)


def unhook(hand: HandState) -> ToolTarget:
    """Leave a handle straight up."""
    return ToolTarget(np.array([*hand.tool_position[:2], TRAVEL_HEIGHT]), hand.speed, SQUEEZE_ANGLE)


def has_room(desk: DeskState, hand: HandState, drawer: Drawer) -> bool:
    """Tell whether the drawer is open enough to be filled, or fully open as long as the fingers are hooked in."""
    return drawer.opening(desk) > (OPEN_FRACTION + 0.05 if is_hooked(desk, hand, drawer) else FILLABLE_FRACTION)


def press(desk: DeskState, hand: HandState, button: Button) -> ToolTarget:
    """Press a button from above with closed fingers."""
    top = button.top(desk)
    if np.linalg.norm(hand.tool_position[:2] - top[:2]) < 0.010 and hand.gripper < MISSED_GRASP_ANGLE:
        return ToolTarget(top - [0.0, 0.0, 0.012], 0.10, SQUEEZE_ANGLE)
    return _lower_closed_fingers(hand, np.array([*top[:2], top[2] + 0.020]))


def pour(desk: DeskState, hand: HandState, cup: DeskObject, basin: Basin) -> ToolTarget:
    """Pick a cup upright and lean the hand outward behind the bowl, so that the cup tips towards the arm."""
    object_position, placement_point = desk.position(cup.body), basin.placement_point(desk)
    if desk.finger_contacts(cup.body) < 2:
        return _approach_and_grasp(desk, hand, cup, pitch=0.0)
    pull_direction = (placement_point[:2] - PAN_AXIS_POSITION) / np.linalg.norm(placement_point[:2] - PAN_AXIS_POSITION)
    above = np.array([*(placement_point[:2] + POUR_OFFSET * pull_direction), POUR_HEIGHT])
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
