"""Taking a thing and putting it on or into a place.

The skill looks at what is there and not at a clock, so it takes up the work where a slip or a push has left it. What it
keeps in mind is the grasp that it has chosen, until that has failed.
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
"""Ways to turn what is held on its way, in radians; the first that is best is taken."""

REGION_OFFSETS = np.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0], [-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=float)
"""Places in a region that are tried, in fractions of what is allowed off its middle: the first that is best."""


class PickAndPlaceSkill:
    """Take a thing and put it on or into a place."""

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
        if self._is_at_destination(held):
            # Let go, and only then leave.
            self._reopening, self._carrying = True, False
            free = state.finger_contacts(self._object_name) == 0
            return HandTarget(position + np.array([0.0, 0.0, 0.05 * free]), rotation, OPEN_COMMAND, 0.15)
        # Firm once, it is carried for as long as both fingers touch it.
        if held and not self._carrying and state.is_grasp_firm():
            self._carrying = True
            self._region_offset = (
                self._choose_region_offset() if state.owner_of(self._receptacle) == ARENA else np.zeros(2)
            )
        self._carrying = self._carrying and held
        if self._carrying:
            return self._carry(position)
        return self._reach(position)

    def _is_at_destination(self, held: bool) -> bool:
        state = self._state
        there = state.is_satisfied(self._goal)
        if not self._inside or not held:
            return there
        # Into something: as far down as the palm may go, and from there it may drop.
        lateral_distance = np.linalg.norm(state.position(self._object_name)[:2] - self._destination()[:2])
        resting = there and state.are_in_contact(self._object_name, state.owner_of(self._receptacle))
        return bool(
            lateral_distance < 0.02
            and (resting or state.tool_pose()[0][2] < self._lowest_hand_height(state.tool_pose()[1]) + 0.008)
        )

    def _reach(self, position: np.ndarray) -> HandTarget:
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
            # Missed: let go, and try elsewhere.
            self._failed_yaws = (*self._failed_yaws[-2:], grasp.yaw)
            self._grasp, self._reopening = None, True
        self._reopening = self._reopening and gripper_width < 0.072
        if near and not self._reopening and (closing or angle_between(grasp.rotation, state.tool_pose()[1]) < 0.15):
            return HandTarget(target, grasp.rotation, CLOSE_COMMAND, 0.05)
        if gripper_width < 0.06 and lateral_distance < 0.04 and position[2] < target[2] + 0.05:
            # Open before moving aside: a finger that drags would push the thing over.
            return HandTarget(position + np.array([0.0, 0.0, 0.01]), grasp.rotation, OPEN_COMMAND, 0.1)
        waypoint = approach_waypoint(state, target, grasp.rotation, ignored=(self._object_name,))
        return HandTarget(waypoint, grasp.rotation, OPEN_COMMAND, 0.15 if lateral_distance < 0.05 else 0.30)

    def _carry(self, position: np.ndarray) -> HandTarget:
        state = self._state
        rotation = self._placement_rotation()
        destination = self._destination()
        thing = state.position(self._object_name)
        boxes = state.boxes(self._object_name)
        load_depth = position[2] - boxes[:, :, 2].min()
        if self._receptacle in state.drawers():
            # The drawer that was just opened may stand above what goes in.
            escape = escape_translation(boxes.reshape(-1, 3), state.obstacles(self._object_name))
            if escape is not None:
                return HandTarget(position + escape, rotation, CLOSE_COMMAND, 0.2)
        width = float(np.ptp(boxes[:, :, :2].reshape(-1, 2), axis=0).max() / 2)
        goal = np.array([*(position[:2] + destination[:2] - thing[:2]), self._lowest_hand_height(rotation)])
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
        low = np.linalg.norm(goal[:2] - position[:2]) < 0.03
        return HandTarget(waypoint, rotation, CLOSE_COMMAND, 0.12 if low else 0.26)

    def _destination(self) -> np.ndarray:
        state = self._state
        destination = state.position(self._receptacle)
        if self._receptacle in state.drawers():
            # Towards the drawer's front, clear of the cabinet and of the handles above.
            out = state.pull_direction(self._receptacle)
            destination = destination + out * (state.half_size(self._receptacle) @ np.abs(out) - 0.010)
        elif self._count > 1 and not self._inside:
            # Side by side, the narrow sides next to each other.
            extent = np.ptp(state.boxes(self._object_name).reshape(-1, 3), axis=0)[:2]
            axis = int(np.argmin(extent))
            room = 2.0 * max(state.half_size(self._receptacle)[axis] - 0.028, 0.0)
            destination[axis] += room * (self._number / (self._count - 1) - 0.5)
        elif state.owner_of(self._receptacle) == ARENA:
            destination[:2] += self._region_offset
        return destination

    def _choose_region_offset(self) -> np.ndarray:
        """Return where about the middle of a table's region [2] the hand can go lowest: not beside a tall thing."""
        half = 0.5 * self._state.half_size(self._receptacle)[:2]
        rotation = self._state.tool_pose()[1]

        def height(region_offset: np.ndarray) -> float:
            self._region_offset = region_offset
            return round(
                min(self._lowest_hand_height(rotate_about_vertical(rotation, angle)) for angle in PLACEMENT_YAWS), 2
            )

        return min((offset * half for offset in REGION_OFFSETS), key=height)

    def _placement_rotation(self) -> np.ndarray:
        """Return the hand's rotation at the destination: as it took hold, or turned if that lets it go lower there."""
        grasp = self._grasp.rotation if self._grasp is not None else self._state.tool_pose()[1]
        return min(
            (rotate_about_vertical(grasp, angle) for angle in PLACEMENT_YAWS),
            key=lambda rotation: round(self._lowest_hand_height(rotation), 2),
        )

    def _lowest_hand_height(self, rotation: np.ndarray) -> float:
        """Return how low the hand may go at the destination: the thing on its place, the palm above what is beside."""
        state = self._state
        position, _ = state.tool_pose()
        load_depth = position[2] - state.boxes(self._object_name)[:, :, 2].min()
        destination = self._destination()
        centre = position[:2] + destination[:2] - state.position(self._object_name)[:2]
        gripper_width = rotation[:2, 1] / max(np.linalg.norm(rotation[:2, 1]), 1e-6)
        boxes = state.obstacles(self._object_name)
        under = overlaps_from_above(boxes, centre, gripper_width, HAND_HALF + 0.008)
        palm = boxes[under][:, :, 2].max(initial=-np.inf) - PALM_OFFSET + 0.006
        floor = destination[2] - (state.half_size(self._receptacle)[2] if self._inside else 0.012)
        return max(palm, floor + load_depth)

    def _current_grasp(self) -> Grasp:
        """Return the chosen grasp where the thing is now; choose anew when it has turned over or nothing is chosen."""
        state = self._state
        turn, origin = state.rotation(self._object_name), state.position(self._object_name)
        if self._grasp is None or angle_between(turn, self._object_rotation) > 0.35:
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
                # Too wide any way: above it, until it lies otherwise.
                grasp = Grasp(origin + np.array([0.0, 0.0, 0.1]), state.tool_pose()[1], 0.0)
            self._grasp, self._object_rotation = grasp, turn
            self._offset = turn.T @ (grasp.position - origin)
        here = origin + turn @ self._offset
        return Grasp(here, self._grasp.rotation, self._grasp.yaw)


def escape_translation(load: np.ndarray, obstacles: np.ndarray) -> np.ndarray | None:
    """Return the level way [3] by which a load comes out from under what is above it; None if nothing is.

    `load` are points [n, 3] around it, `obstacles` the corners [m, 8, 3] of boxes.
    """
    low, high = load.min(0) - 0.012, load.max(0) + 0.012
    least, most = obstacles.min(1), obstacles.max(1)
    above = (least[:, 2] > high[2] - 0.03) & (least[:, :2] < high[:2]).all(1) & (most[:, :2] > low[:2]).all(1)
    if not above.any():
        return None
    least, most = least[above].min(0), most[above].max(0)
    ways = np.array(
        [[least[0] - high[0], 0, 0], [most[0] - low[0], 0, 0], [0, least[1] - high[1], 0], [0, most[1] - low[1], 0]]
    )
    return ways[np.argmin(np.abs(ways).sum(1))]
