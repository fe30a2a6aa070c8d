"""Working what stands still: pulling and pushing drawers, turning knobs, closing doors."""

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
    """Return the hand's rotation when it points along a level `direction` [3], `tilt` radians below.

    Its fingers open sideways if `level`, else upwards. Of the two ways to hold it so, the one nearer to how it is held.
    """
    ahead = direction * np.cos(tilt) - np.array([0.0, 0.0, np.sin(tilt)])
    side = np.cross(direction, [0.0, 0.0, 1.0])
    gripper_width = side if level else np.cross(ahead, side)
    choices = [np.stack([np.cross(each, ahead), each, ahead], axis=1) for each in (gripper_width, -gripper_width)]
    now = state.tool_pose()[1]
    return min(choices, key=lambda rotation: angle_between(rotation, now))


class OpenDrawerSkill:
    """Open a drawer by its handle, the hand tilted so that its fingers get above and below the bar."""

    TILT = 0.3
    """How far below the horizontal the hand points, in radians."""

    def __init__(self, state: PrivilegedState, step: PlanStep) -> None:
        self._state, self._region, self._goal = state, step.target_name, step.goal
        self._pull_axis = state.pull_direction(self._region)
        self._rotation = tilted_rotation(state, -self._pull_axis, self.TILT, level=False)

    def is_satisfied(self) -> bool:
        # What was opened to put something in may be closed after.
        return not self._goal or self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        state = self._state
        if not state.is_satisfied(("open", self._region)) or state.finger_contacts(state.owner_of(self._region)):
            return False
        way = state.tool_pose()[0] - state.handle(self._region)
        return bool(way @ self._pull_axis > 0.09 or np.linalg.norm(way) > 0.15)

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, rotation = state.tool_pose()
        handle = state.handle(self._region)
        ahead = self._rotation[:, 2]
        if state.is_satisfied(("open", self._region)):
            leaving = state.gripper_width() > 0.05
            return HandTarget(position - 0.05 * leaving * ahead, self._rotation, OPEN_COMMAND, 0.15)
        touching = state.finger_contacts(state.owner_of(self._region)) == 2
        if touching and state.is_grasp_firm():
            return HandTarget(position + 0.04 * self._pull_axis, self._rotation, CLOSE_COMMAND, 0.2)
        target = handle + 0.005 * ahead
        offset = position - target
        along = float(offset @ ahead)
        lateral_distance = float(np.linalg.norm(offset - along * ahead))
        aligned = angle_between(self._rotation, rotation) < 0.15
        closing = state.gripper_width() < 0.068
        if (
            state.gripper_width() > EMPTY_GRIPPER_WIDTH
            and lateral_distance < 0.015
            and abs(along) < (0.02 if closing else 0.010)
        ):
            return HandTarget(target, self._rotation, CLOSE_COMMAND, 0.05)
        # Before the handle first, and straight ahead from there.
        back = 0.10 * np.clip((lateral_distance - 0.010) / 0.02, 0.0, 1.0) if aligned else 0.10
        waypoint = target - back * ahead
        if lateral_distance > 0.10:
            waypoint[2] = max(waypoint[2] + 0.08, position[2] - 0.03) if lateral_distance > 0.15 else waypoint[2] + 0.08
        return HandTarget(waypoint, self._rotation, OPEN_COMMAND, 0.25 if back > 0.05 else 0.15)


class TurnKnobSkill:
    """Take a knob between the fingers and turn it."""

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
        handle = boxes[boxes[:, :, 2].max(1) > top - 0.004]
        grasp = choose_grasp(KNOB, handle, np.zeros((0, 8, 3)), home_yaw=self._home_yaw)
        if grasp is None:
            raise WorldError(f"{self._fixture}: its knob is wider than the fingers open")
        target, turn = grasp.position, grasp.rotation
        lateral_distance, above = np.linalg.norm(position[:2] - target[:2]), abs(position[2] - target[2])
        gripper_width = state.gripper_width()
        near = lateral_distance < 0.02 and above < 0.02
        aligned = angle_between(turn, rotation) < 0.2
        self._gripped = (
            near
            and EMPTY_GRIPPER_WIDTH < gripper_width < 0.04
            and (self._gripped or state.finger_contacts(self._fixture) == 2)
        )
        too_far = angle_between(rotation, downward_rotation(self._home_yaw)) > 1.4
        self._reopening = gripper_width < 0.07 and (
            self._reopening or too_far or (near and gripper_width < EMPTY_GRIPPER_WIDTH)
        )
        if self._gripped and not self._reopening:
            sense = np.sign(state.joint_axis(self._joint)[2])
            return HandTarget(target, rotate_about_vertical(rotation, 0.5 * sense), CLOSE_COMMAND, 0.15)
        if near and not self._reopening and (gripper_width < 0.068 or (lateral_distance < 0.008 and aligned)):
            return HandTarget(target, turn, CLOSE_COMMAND, 0.15)
        if self._reopening:
            return HandTarget(position, rotation, OPEN_COMMAND, 0.1)
        waypoint = approach_waypoint(state, target, turn, ignored=(self._fixture,))
        return HandTarget(waypoint, turn, OPEN_COMMAND, 0.15 if lateral_distance < 0.05 else 0.3)


class CloseDrawerSkill:
    """Close a drawer, pushing at its handle with closed fingers, the hand leaning back from what is above."""

    TILT = 0.85
    """How far below the horizontal the hand points, in radians."""

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
            # A little beyond the handle: the last millimetres need a push.
            return HandTarget(handle - 0.05 * self._pull_axis, self._rotation, CLOSE_COMMAND, 0.15)
        before = handle + 0.09 * self._pull_axis
        if along < 0.05 or lateral_distance > 0.10:
            # Up over everything first, then down well before the handle.
            before = approach_waypoint(state, before, self._rotation, above=0.10, descent_radius=0.02)
        return HandTarget(before, self._rotation, CLOSE_COMMAND, 0.25)


class CloseDoorSkill:
    """Close a door that swings, pushing its outer face with closed fingers that point down."""

    REACH = 0.65
    """Where along the door it is pushed: a fraction of the way from the hinge to the edge."""

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
        boxes = state.part_boxes(self._body)
        hinge = state.joint_anchor(self._joint)[:2]
        panel = boxes[np.argmax(np.ptp(boxes.reshape(len(boxes), -1, 3), axis=1).max(1))]
        centre = panel.mean(0)
        along = centre[:2] - hinge
        along /= np.linalg.norm(along)
        # Closing turns the door about the vertical, against the way it opens.
        sense = -np.sign(state.joint_angle(self._joint)) * np.sign(state.joint_axis(self._joint)[2])
        closing = sense * np.array([-along[1], along[0]])
        length = float(((panel[:, :2] - hinge) @ along).max())
        place = hinge + self.REACH * length * along
        height = boxes[:, :, 2].max() - 0.035
        yaw = np.arctan2(along[1], along[0])
        turn = downward_rotation(nearest_equivalent_yaw(yaw, self._home_yaw))
        offset = position[:2] - place
        behind = float(-offset @ closing)
        if position[2] < height + 0.03 and behind > 0.015 and abs(offset @ along) < 0.05:
            target = np.array([*(place + 0.03 * closing), height])
            return HandTarget(target, turn, CLOSE_COMMAND, 0.2)
        before = np.array([*(place - 0.07 * closing), height])
        return HandTarget(approach_waypoint(state, before, turn, descent_radius=0.02), turn, CLOSE_COMMAND, 0.25)
