"""Skills on fixtures: open and close drawers, turn knobs, close doors.

Positions are in metres in the world frame. `along` is a coordinate along the direction of the motion, and
`lateral_distance` the distance from that line.
"""

from __future__ import annotations

import numpy as np

from ....errors import WorldError
from .grasps import KNOB, choose_grasp
from .motion import (
    CLOSE_COMMAND,
    EMPTY_GRIPPER_WIDTH,
    OPEN_COMMAND,
    HandTarget,
    angle_between,
    approach_waypoint,
    downward_rotation,
    nearest_equivalent_yaw,
    rotate_about_vertical,
)
from .plans import PlanStep
from .privileged_state import PrivilegedState


def tilted_rotation(state: PrivilegedState, direction: np.ndarray, tilt: float, *, level: bool) -> np.ndarray:
    """Return the rotation of a hand that points along a direction, tilted downwards.

    Of the two equivalent rotations (both fingers are alike) it is the one nearer to the present rotation.

    Args:
        state: Where the hand is.
        direction: Horizontal unit vector [3] in the world frame.
        tilt: Angle in radians of the hand below the horizontal.
        level: Whether the fingers open horizontally; otherwise they open upwards.

    Returns:
        Rotation [3, 3] from the hand's frame to the world frame.
    """
    forward = direction * np.cos(tilt) - np.array([0.0, 0.0, np.sin(tilt)])  # [3]
    side = np.cross(direction, [0.0, 0.0, 1.0])
    opening_axis = side if level else np.cross(forward, side)
    choices = [np.stack([np.cross(axis, forward), axis, forward], axis=1) for axis in (opening_axis, -opening_axis)]
    current_rotation = state.tool_pose()[1]
    return min(choices, key=lambda rotation: angle_between(rotation, current_rotation))


class OpenDrawerSkill:
    """Open a drawer by its handle, with one finger above and one below the bar.

    The hand is tilted: pointing straight down it does not fit under the handle above.
    """

    TILT = 0.3
    """Angle in radians of the hand below the horizontal."""

    def __init__(self, state: PrivilegedState, step: PlanStep) -> None:
        self._state, self._region, self._goal = state, step.target_name, step.goal
        self._pull_axis = state.pull_direction(self._region)
        self._rotation = tilted_rotation(state, -self._pull_axis, self.TILT, level=False)

    def is_satisfied(self) -> bool:
        # A drawer that was opened for a `place` step may be closed afterwards.
        return not self._goal or self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        state = self._state
        if not state.is_satisfied(("open", self._region)) or state.finger_contacts(state.owner_of(self._region)):
            return False
        offset = state.tool_pose()[0] - state.handle(self._region)
        return bool(offset @ self._pull_axis > 0.09 or np.linalg.norm(offset) > 0.15)

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, rotation = state.tool_pose()
        handle = state.handle(self._region)
        forward = self._rotation[:, 2]
        if state.is_satisfied(("open", self._region)):
            gripper_open = state.gripper_width() > 0.05
            return HandTarget(position - 0.05 * gripper_open * forward, self._rotation, OPEN_COMMAND, 0.15)
        touching = state.finger_contacts(state.owner_of(self._region)) == 2
        if touching and state.is_grasp_firm():
            return HandTarget(position + 0.04 * self._pull_axis, self._rotation, CLOSE_COMMAND, 0.2)
        target = handle + 0.005 * forward
        offset = position - target
        along = float(offset @ forward)
        lateral_distance = float(np.linalg.norm(offset - along * forward))
        aligned = angle_between(self._rotation, rotation) < 0.15
        closing = state.gripper_width() < 0.068
        if (
            state.gripper_width() > EMPTY_GRIPPER_WIDTH
            and lateral_distance < 0.015
            and abs(along) < (0.02 if closing else 0.010)
        ):
            return HandTarget(target, self._rotation, CLOSE_COMMAND, 0.05)
        # Go to a point before the handle first, then straight forward.
        back = 0.10 * np.clip((lateral_distance - 0.010) / 0.02, 0.0, 1.0) if aligned else 0.10
        waypoint = target - back * forward
        if lateral_distance > 0.10:
            waypoint[2] = max(waypoint[2] + 0.08, position[2] - 0.03) if lateral_distance > 0.15 else waypoint[2] + 0.08
        return HandTarget(waypoint, self._rotation, OPEN_COMMAND, 0.25 if back > 0.05 else 0.15)


class TurnKnobSkill:
    """Grasp a knob between the fingers and turn it about the vertical."""

    def __init__(self, state: PrivilegedState, step: PlanStep, home_yaw: float) -> None:
        self._state, self._fixture, self._goal, self._home_yaw = state, step.target_name, step.goal, home_yaw
        self._joint = state.joint_of(self._fixture)
        self._body = state.model.body(state.model.jnt_bodyid[self._joint]).name
        self._gripped = self._reopening = False

    def is_satisfied(self) -> bool:
        return self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        return self.is_satisfied() and self._state.gripper_width() > 0.06

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, rotation = state.tool_pose()
        if state.is_satisfied(self._goal):
            return HandTarget(
                position + np.array([0.0, 0.0, 0.03]) * (state.gripper_width() > 0.05), rotation, OPEN_COMMAND, 0.1
            )
        boxes = state.part_boxes(self._body)
        top = boxes[:, :, 2].max()
        handle = boxes[boxes[:, :, 2].max(1) > top - 0.004]  # [h, 8, 3], the knob's grip
        grasp = choose_grasp(KNOB, handle, np.zeros((0, 8, 3)), home_yaw=self._home_yaw)
        if grasp is None:
            raise WorldError(f"{self._fixture}: its knob is wider than the gripper opens")
        target, grasp_rotation = grasp.position, grasp.rotation
        lateral_distance, height_error = np.linalg.norm(position[:2] - target[:2]), abs(position[2] - target[2])
        gripper_width = state.gripper_width()
        near = lateral_distance < 0.02 and height_error < 0.02
        aligned = angle_between(grasp_rotation, rotation) < 0.2
        self._gripped = (
            near
            and EMPTY_GRIPPER_WIDTH < gripper_width < 0.04
            and (self._gripped or state.finger_contacts(self._fixture) == 2)
        )
        # The wrist turns only so far: let go, rotate back and grasp the knob again.
        too_far = angle_between(rotation, downward_rotation(self._home_yaw)) > 1.4
        self._reopening = gripper_width < 0.07 and (
            self._reopening or too_far or (near and gripper_width < EMPTY_GRIPPER_WIDTH)
        )
        if self._gripped and not self._reopening:
            direction = np.sign(state.joint_axis(self._joint)[2])
            return HandTarget(target, rotate_about_vertical(rotation, 0.5 * direction), CLOSE_COMMAND, 0.15)
        if near and not self._reopening and (gripper_width < 0.068 or (lateral_distance < 0.008 and aligned)):
            return HandTarget(target, grasp_rotation, CLOSE_COMMAND, 0.15)
        if self._reopening:
            return HandTarget(position, rotation, OPEN_COMMAND, 0.1)
        waypoint = approach_waypoint(state, target, grasp_rotation, ignored=(self._fixture,))
        return HandTarget(waypoint, grasp_rotation, OPEN_COMMAND, 0.15 if lateral_distance < 0.05 else 0.3)


class CloseDrawerSkill:
    """Close a drawer: push its handle with closed fingers, the hand tilted to stay clear of the cabinet above."""

    TILT = 0.85
    """Angle in radians of the hand below the horizontal."""

    def __init__(self, state: PrivilegedState, step: PlanStep) -> None:
        self._state, self._region, self._goal = state, step.target_name, step.goal
        self._pull_axis = state.pull_direction(self._region)
        self._rotation = tilted_rotation(state, -self._pull_axis, self.TILT, level=True)
        self._joint = state.joint_of(self._region)

    def is_satisfied(self) -> bool:
        return self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        return self.is_satisfied()

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, rotation = state.tool_pose()
        handle = state.handle(self._region)
        offset = position - handle
        along = float(offset @ self._pull_axis)
        lateral_distance = float(np.linalg.norm(offset - along * self._pull_axis))
        if lateral_distance < 0.02 and along > -0.02 and angle_between(self._rotation, rotation) < 0.2:
            # Aim beyond the handle: the last millimetres need force.
            return HandTarget(handle - 0.05 * self._pull_axis, self._rotation, CLOSE_COMMAND, 0.15)
        waypoint = handle + 0.09 * self._pull_axis
        if along < 0.05 or lateral_distance > 0.10:
            # Go up over everything first, then down in front of the handle.
            waypoint = approach_waypoint(state, waypoint, self._rotation, above=0.10, descent_radius=0.02)
        return HandTarget(waypoint, self._rotation, CLOSE_COMMAND, 0.25)


class CloseDoorSkill:
    """Close a hinged door: push its outer face with closed fingers that point down."""

    PUSH_FRACTION = 0.65
    """Where along the door the hand pushes, as a fraction of the distance from the hinge to the edge."""

    def __init__(self, state: PrivilegedState, step: PlanStep, home_yaw: float) -> None:
        self._state, self._fixture, self._goal, self._home_yaw = state, step.target_name, step.goal, home_yaw
        self._joint = state.joint_of(self._fixture)
        self._body = state.model.body(state.model.jnt_bodyid[self._joint]).name

    def is_satisfied(self) -> bool:
        return self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        return self.is_satisfied()

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, _ = state.tool_pose()
        boxes = state.part_boxes(self._body)  # [n, 8, 3]
        hinge = state.joint_anchor(self._joint)[:2]
        panel = boxes[np.argmax(np.ptp(boxes.reshape(len(boxes), -1, 3), axis=1).max(1))]  # [8, 3], the longest box
        centre = panel.mean(0)
        door_axis = centre[:2] - hinge  # [2], from the hinge to the door's edge
        door_axis /= np.linalg.norm(door_axis)
        # The door closes by a rotation about the vertical, against the direction in which it opens.
        direction = -np.sign(state.joint_angle(self._joint)) * np.sign(state.joint_axis(self._joint)[2])
        closing_axis = direction * np.array([-door_axis[1], door_axis[0]])
        length = float(((panel[:, :2] - hinge) @ door_axis).max())
        push_point = hinge + self.PUSH_FRACTION * length * door_axis
        height = boxes[:, :, 2].max() - 0.035
        yaw = np.arctan2(door_axis[1], door_axis[0])
        rotation = downward_rotation(nearest_equivalent_yaw(yaw, self._home_yaw))
        offset = position[:2] - push_point
        behind = float(-offset @ closing_axis)
        if position[2] < height + 0.03 and behind > 0.015 and abs(offset @ door_axis) < 0.05:
            target = np.array([*(push_point + 0.03 * closing_axis), height])
            return HandTarget(target, rotation, CLOSE_COMMAND, 0.2)
        waypoint = np.array([*(push_point - 0.07 * closing_axis), height])
        waypoint = approach_waypoint(state, waypoint, rotation, descent_radius=0.02)
        return HandTarget(waypoint, rotation, CLOSE_COMMAND, 0.25)
