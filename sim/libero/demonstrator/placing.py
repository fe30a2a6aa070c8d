"""The skill that grasps an object and puts it on or into a receptacle.

The skill decides from the present state and not from a clock, so it recovers from slips and pushes. It remembers the
chosen grasp until that grasp fails. Positions are in metres in the world frame.
"""

from __future__ import annotations

import numpy as np

from .grasps import Grasp, choose_grasp, find_grasp_spec
from .motion import (
    CLOSE_COMMAND,
    EMPTY_GRIPPER_WIDTH,
    HAND_HALF,
    OPEN_COMMAND,
    PALM_OFFSET,
    HandTarget,
    angle_between,
    approach_waypoint,
    overlaps_from_above,
    rotate_about_vertical,
)
from .plans import PlanStep
from .privileged_state import ARENA, PrivilegedState

PLACEMENT_YAWS = (0.0, np.pi / 2, -np.pi / 2)
"""Rotations of a held object about the vertical that are tried, in radians; the first best one is taken."""

REGION_OFFSETS = np.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0], [-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=float)
"""Offsets [9, 2] from a region's centre that are tried, as fractions of the allowed offset; the first best is taken."""


class PickAndPlaceSkill:
    """Grasp an object and put it on or into a receptacle."""

    def __init__(self, state: PrivilegedState, step: PlanStep, home_yaw: float) -> None:
        self._state, self._object_name = state, step.target_name
        self._receptacle, self._goal = step.receptacle, step.goal
        self._home_yaw = home_yaw
        self._grasp_spec = find_grasp_spec(self._object_name)
        self._grasp: Grasp | None = None
        self._object_rotation = np.eye(3)
        self._failed_yaws: tuple[float, ...] = ()
        self._reopening = self._carrying = False
        self._region_offset = np.zeros(2)
        self._inside = step.goal[0] == "in"
        self._number, self._count = step.number, step.count

    def is_satisfied(self) -> bool:
        return self._state.is_satisfied(self._goal)

    def is_finished(self) -> bool:
        state = self._state
        return (
            state.is_satisfied(self._goal)
            and state.finger_contacts(self._object_name) == 0
            and state.gripper_width() > 0.05
        )

    def next_hand_target(self) -> HandTarget:
        state = self._state
        position, rotation = state.tool_pose()
        held = state.finger_contacts(self._object_name) == 2 and state.gripper_width() > EMPTY_GRIPPER_WIDTH
        if self._is_at_destination(held=held):
            # Open the gripper first, then go up.
            self._reopening, self._carrying = True, False
            free = state.finger_contacts(self._object_name) == 0
            return HandTarget(position + np.array([0.0, 0.0, 0.05 * free]), rotation, OPEN_COMMAND, 0.15)
        # After a firm grasp, carry the object for as long as both fingers touch it.
        if held and not self._carrying and state.is_grasp_firm():
            self._carrying = True
            self._region_offset = (
                self._choose_region_offset() if state.owner_of(self._receptacle) == ARENA else np.zeros(2)
            )
        self._carrying = self._carrying and held
        if self._carrying:
            return self._carry(position)
        return self._reach(position)

    def _is_at_destination(self, *, held: bool) -> bool:
        """Tell whether the object is where the gripper can release it."""
        state = self._state
        satisfied = state.is_satisfied(self._goal)
        if not self._inside or not held:
            return satisfied
        # Into a receptacle: go as far down as the palm may, then drop the object.
        lateral_distance = np.linalg.norm(state.position(self._object_name)[:2] - self._destination()[:2])
        resting = satisfied and state.are_in_contact(self._object_name, state.owner_of(self._receptacle))
        return bool(
            lateral_distance < 0.02
            and (resting or state.tool_pose()[0][2] < self._lowest_hand_height(state.tool_pose()[1]) + 0.008)
        )

    def _reach(self, position: np.ndarray) -> HandTarget:
        """Return the target on the way from `position` [3] to the grasp, or the one that closes the gripper."""
        state = self._state
        grasp = self._current_grasp()
        target = grasp.position
        lateral_distance = np.linalg.norm(position[:2] - target[:2])
        gripper_width = state.gripper_width()
        closing = gripper_width < 0.068
        near = lateral_distance < (0.02 if closing else 0.009) and abs(position[2] - target[2]) < (
            0.02 if closing else 0.007
        )
        touching = state.finger_contacts(self._object_name)
        if near and closing and touching < 2 and state.are_fingers_still():
            # Missed grasp: open and try another one.
            self._failed_yaws = (*self._failed_yaws[-2:], grasp.yaw)
            self._grasp, self._reopening = None, True
        self._reopening = self._reopening and gripper_width < 0.072
        if near and not self._reopening and (closing or angle_between(grasp.rotation, state.tool_pose()[1]) < 0.15):
            return HandTarget(target, grasp.rotation, CLOSE_COMMAND, 0.05)
        if gripper_width < 0.06 and lateral_distance < 0.04 and position[2] < target[2] + 0.05:
            # Open before moving sideways: a dragging finger would push the object over.
            return HandTarget(position + np.array([0.0, 0.0, 0.01]), grasp.rotation, OPEN_COMMAND, 0.1)
        waypoint = approach_waypoint(state, target, grasp.rotation, ignored=(self._object_name,))
        return HandTarget(waypoint, grasp.rotation, OPEN_COMMAND, 0.15 if lateral_distance < 0.05 else 0.30)

    def _carry(self, position: np.ndarray) -> HandTarget:
        """Return the target on the way from `position` [3] to the destination, with the object in the gripper."""
        state = self._state
        rotation = self._placement_rotation()
        destination = self._destination()
        object_position = state.position(self._object_name)
        boxes = state.boxes(self._object_name)  # [n, 8, 3]
        load_depth = position[2] - boxes[:, :, 2].min()
        if self._receptacle in state.drawers():
            # The load may be under the drawer that was just opened.
            escape = escape_translation(boxes.reshape(-1, 3), state.obstacles(self._object_name))
            if escape is not None:
                return HandTarget(position + escape, rotation, CLOSE_COMMAND, 0.2)
        width = float(np.ptp(boxes[:, :, :2].reshape(-1, 2), axis=0).max() / 2)
        goal = np.array([*(position[:2] + destination[:2] - object_position[:2]), self._lowest_hand_height(rotation)])
        waypoint = approach_waypoint(
            state,
            goal,
            rotation,
            load_depth=load_depth,
            width=width,
            above=0.05,
            descent_radius=0.012,
            ignored=(self._object_name,),
        )
        near = np.linalg.norm(goal[:2] - position[:2]) < 0.03
        return HandTarget(waypoint, rotation, CLOSE_COMMAND, 0.12 if near else 0.26)

    def _destination(self) -> np.ndarray:
        """Return where the object's origin [3] should go."""
        state = self._state
        destination = state.position(self._receptacle)
        if self._receptacle in state.drawers():
            # Near the drawer's front, clear of the cabinet and of the handles above.
            pull_axis = state.pull_direction(self._receptacle)
            destination = destination + pull_axis * (state.half_size(self._receptacle) @ np.abs(pull_axis) - 0.010)
        elif self._count > 1 and not self._inside:
            # Place the objects side by side along their narrow side.
            extent = np.ptp(state.boxes(self._object_name).reshape(-1, 3), axis=0)[:2]
            axis = int(np.argmin(extent))
            room = 2.0 * max(state.half_size(self._receptacle)[axis] - 0.028, 0.0)
            destination[axis] += room * (self._number / (self._count - 1) - 0.5)
        elif state.owner_of(self._receptacle) == ARENA:
            destination[:2] += self._region_offset
        return destination

    def _choose_region_offset(self) -> np.ndarray:
        """Return the offset [2] from a table region's centre where the hand can go lowest, away from tall objects."""
        half = 0.5 * self._state.half_size(self._receptacle)[:2]
        rotation = self._state.tool_pose()[1]

        def height(region_offset: np.ndarray) -> float:
            self._region_offset = region_offset
            return round(
                min(self._lowest_hand_height(rotate_about_vertical(rotation, angle)) for angle in PLACEMENT_YAWS), 2
            )

        return min((offset * half for offset in REGION_OFFSETS), key=height)

    def _placement_rotation(self) -> np.ndarray:
        """Return the hand's rotation [3, 3] at the destination: the grasp's, turned by a yaw if it then goes lower."""
        grasp = self._grasp.rotation if self._grasp is not None else self._state.tool_pose()[1]
        return min(
            (rotate_about_vertical(grasp, angle) for angle in PLACEMENT_YAWS),
            key=lambda rotation: round(self._lowest_hand_height(rotation), 2),
        )

    def _lowest_hand_height(self, rotation: np.ndarray) -> float:
        """Return the lowest height of the tool point at the destination.

        The object then rests on its receptacle, or the palm on the tallest obstacle beside it.
        """
        state = self._state
        position, _ = state.tool_pose()
        load_depth = position[2] - state.boxes(self._object_name)[:, :, 2].min()
        destination = self._destination()
        centre = position[:2] + destination[:2] - state.position(self._object_name)[:2]
        opening_axis = rotation[:2, 1] / max(np.linalg.norm(rotation[:2, 1]), 1e-6)
        boxes = state.obstacles(self._object_name)
        under = overlaps_from_above(boxes, centre, opening_axis, HAND_HALF + 0.008)
        palm = boxes[under][:, :, 2].max(initial=-np.inf) - PALM_OFFSET + 0.006
        floor = destination[2] - (state.half_size(self._receptacle)[2] if self._inside else 0.012)
        return max(palm, floor + load_depth)

    def _current_grasp(self) -> Grasp:
        """Return the chosen grasp at the object's present pose. Choose again if there is none or the object rotated."""
        state = self._state
        object_rotation, origin = state.rotation(self._object_name), state.position(self._object_name)
        if self._grasp is None or angle_between(object_rotation, self._object_rotation) > 0.35:
            avoid_direction = (
                state.pull_direction(self._receptacle)[:2] if self._receptacle in state.drawers() else None
            )
            grasp = choose_grasp(
                self._grasp_spec,
                state.boxes(self._object_name),
                state.obstacles(self._object_name),
                home_yaw=self._home_yaw,
                base=state.base()[:2],
                avoid_direction=avoid_direction,
                failed_yaws=self._failed_yaws,
            )
            if grasp is None:
                # Too wide at every yaw: wait above the object until it lies differently.
                grasp = Grasp(origin + np.array([0.0, 0.0, 0.1]), state.tool_pose()[1], 0.0)
            self._grasp, self._object_rotation = grasp, object_rotation
            self._offset = object_rotation.T @ (grasp.position - origin)  # [3], in the object's frame
        position = origin + object_rotation @ self._offset
        return Grasp(position, self._grasp.rotation, self._grasp.yaw)


def escape_translation(load: np.ndarray, obstacles: np.ndarray) -> np.ndarray | None:
    """Return the shortest horizontal translation [3] that moves a load out from under obstacles; None if it is free.

    Args:
        load: Corners [n, 3] of the load's boxes.
        obstacles: Corners [m, 8, 3] of the obstacles' boxes.
    """
    low, high = load.min(0) - 0.012, load.max(0) + 0.012  # [3] each
    lower, upper = obstacles.min(1), obstacles.max(1)  # [m, 3] each
    above = (lower[:, 2] > high[2] - 0.03) & (lower[:, :2] < high[:2]).all(1) & (upper[:, :2] > low[:2]).all(1)  # [m]
    if not above.any():
        return None
    lower, upper = lower[above].min(0), upper[above].max(0)  # [3] each
    translations = np.array(
        [
            [lower[0] - high[0], 0, 0],
            [upper[0] - low[0], 0, 0],
            [0, lower[1] - high[1], 0],
            [0, upper[1] - low[1], 0],
        ]
    )
    return translations[np.argmin(np.abs(translations).sum(1))]
