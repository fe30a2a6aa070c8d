"""Taking a thing and putting it on or into a place.

The skill looks at what is there and not at a clock, so it takes up the work where a slip or a push has left it. What it
keeps in mind is the grasp that it has chosen, until that has failed.
"""

from __future__ import annotations

import numpy as np

from .grasps import Grasp, choose_grasp, grip_of
from .motion import CLOSE, EMPTY, HAND_HALF, OPEN, PALM, Motion, angle_between, approach, overlaps, turned
from .plans import Step
from .truth import ARENA, Truth

TURNS = (0.0, np.pi / 2, -np.pi / 2)
"""Ways to turn what is held on its way, in radians; the first that is best is taken."""

SPOTS = np.array([[0, 0], [0, -1], [-1, 0], [0, 1], [1, 0], [-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=float)
"""Places in a region that are tried, in fractions of what is allowed off its middle: the first that is best."""


class Place:
    """Take a thing and put it on or into a place."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._thing, self._place, self._goal = truth, step.subject, step.place, step.goal
        self._home = home
        self._grip = grip_of(self._thing)
        self._grasp: Grasp | None = None
        self._turn = np.eye(3)
        self._refused: tuple[float, ...] = ()
        self._reopening = self._carrying = False
        self._spot = np.zeros(2)
        self._inside = step.goal[0] == "in"
        self._number, self._count = step.number, step.count

    def holds(self) -> bool:
        return self._truth.holds(self._goal)

    def done(self) -> bool:
        truth = self._truth
        return truth.holds(self._goal) and truth.finger_contacts(self._thing) == 0 and truth.opening() > 0.05

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        held = truth.finger_contacts(self._thing) == 2 and truth.opening() > EMPTY
        if self._arrived(held):
            # Let go, and only then leave.
            self._reopening, self._carrying = True, False
            free = truth.finger_contacts(self._thing) == 0
            return Motion(position + np.array([0.0, 0.0, 0.05 * free]), rotation, OPEN, 0.15)
        # Firm once, it is carried for as long as both fingers touch it.
        if held and not self._carrying and truth.firm():
            self._carrying = True
            self._spot = self._choose_spot() if truth.owner_of(self._place) == ARENA else np.zeros(2)
        self._carrying = self._carrying and held
        if self._carrying:
            return self._carry(position)
        return self._reach(position)

    def _arrived(self, held: bool) -> bool:
        truth = self._truth
        there = truth.holds(self._goal)
        if not self._inside or not held:
            return there
        # Into something: as far down as the palm may go, and from there it may drop.
        aside = np.linalg.norm(truth.position(self._thing)[:2] - self._destination()[:2])
        resting = there and truth.touch(self._thing, truth.owner_of(self._place))
        return bool(aside < 0.02 and (resting or truth.tool()[0][2] < self._lowest(truth.tool()[1]) + 0.008))

    def _reach(self, position: np.ndarray) -> Motion:
        truth = self._truth
        grasp = self._current_grasp()
        target = grasp.position
        aside = np.linalg.norm(position[:2] - target[:2])
        opening = truth.opening()
        closing = opening < 0.068
        near = aside < (0.02 if closing else 0.009) and abs(position[2] - target[2]) < (0.02 if closing else 0.007)
        touching = truth.finger_contacts(self._thing)
        if near and closing and touching < 2 and truth.fingers_stopped():
            # Missed: let go, and try elsewhere.
            self._refused = (*self._refused[-2:], grasp.yaw)
            self._grasp, self._reopening = None, True
        self._reopening = self._reopening and opening < 0.072
        if near and not self._reopening and (closing or angle_between(grasp.rotation, truth.tool()[1]) < 0.15):
            return Motion(target, grasp.rotation, CLOSE, 0.05)
        if opening < 0.06 and aside < 0.04 and position[2] < target[2] + 0.05:
            # Open before moving aside: a finger that drags would push the thing over.
            return Motion(position + np.array([0.0, 0.0, 0.01]), grasp.rotation, OPEN, 0.1)
        heading = approach(truth, target, grasp.rotation, ignored=(self._thing,))
        return Motion(heading, grasp.rotation, OPEN, 0.15 if aside < 0.05 else 0.30)

    def _carry(self, position: np.ndarray) -> Motion:
        truth = self._truth
        rotation = self._turned_for_place()
        place = self._destination()
        thing = truth.position(self._thing)
        boxes = truth.boxes(self._thing)
        hanging = position[2] - boxes[:, :, 2].min()
        if self._place in truth.drawers():
            # The drawer that was just opened may stand above what goes in.
            escape = way_out(boxes.reshape(-1, 3), truth.obstacles(self._thing))
            if escape is not None:
                return Motion(position + escape, rotation, CLOSE, 0.2)
        width = float(np.ptp(boxes[:, :, :2].reshape(-1, 2), axis=0).max() / 2)
        goal = np.array([*(position[:2] + place[:2] - thing[:2]), self._lowest(rotation)])
        heading = approach(
            truth, goal, rotation, hanging=hanging, width=width, above=0.05, narrow=0.012, ignored=(self._thing,)
        )
        low = np.linalg.norm(goal[:2] - position[:2]) < 0.03
        return Motion(heading, rotation, CLOSE, 0.12 if low else 0.26)

    def _destination(self) -> np.ndarray:
        truth = self._truth
        place = truth.position(self._place)
        if self._place in truth.drawers():
            # Towards the drawer's front, clear of the cabinet and of the handles above.
            out = truth.pull_direction(self._place)
            place = place + out * (truth.half_size(self._place) @ np.abs(out) - 0.010)
        elif self._count > 1 and not self._inside:
            # Side by side, the narrow sides next to each other.
            extent = np.ptp(truth.boxes(self._thing).reshape(-1, 3), axis=0)[:2]
            axis = int(np.argmin(extent))
            room = 2.0 * max(truth.half_size(self._place)[axis] - 0.028, 0.0)
            place[axis] += room * (self._number / (self._count - 1) - 0.5)
        elif truth.owner_of(self._place) == ARENA:
            place[:2] += self._spot
        return place

    def _choose_spot(self) -> np.ndarray:
        """Return where about the middle of a table's region [2] the hand can go lowest: not beside a tall thing."""
        half = 0.5 * self._truth.half_size(self._place)[:2]
        rotation = self._truth.tool()[1]

        def height(spot: np.ndarray) -> float:
            self._spot = spot
            return round(min(self._lowest(turned(rotation, angle)) for angle in TURNS), 2)

        return min((offset * half for offset in SPOTS), key=height)

    def _turned_for_place(self) -> np.ndarray:
        """Return the hand's rotation at the destination: as it took hold, or turned if that lets it go lower there."""
        grasp = self._grasp.rotation if self._grasp is not None else self._truth.tool()[1]
        return min((turned(grasp, angle) for angle in TURNS), key=lambda rotation: round(self._lowest(rotation), 2))

    def _lowest(self, rotation: np.ndarray) -> float:
        """Return how low the hand may go at the destination: the thing on its place, the palm above what is beside."""
        truth = self._truth
        position, _ = truth.tool()
        hanging = position[2] - truth.boxes(self._thing)[:, :, 2].min()
        place = self._destination()
        centre = position[:2] + place[:2] - truth.position(self._thing)[:2]
        opening = rotation[:2, 1] / max(np.linalg.norm(rotation[:2, 1]), 1e-6)
        boxes = truth.obstacles(self._thing)
        under = overlaps(boxes, centre, opening, HAND_HALF + 0.008)
        palm = boxes[under][:, :, 2].max(initial=-np.inf) - PALM + 0.006
        floor = place[2] - (truth.half_size(self._place)[2] if self._inside else 0.012)
        return max(palm, floor + hanging)

    def _current_grasp(self) -> Grasp:
        """Return the chosen grasp where the thing is now; choose anew when it has turned over or nothing is chosen."""
        truth = self._truth
        turn, origin = truth.rotation(self._thing), truth.position(self._thing)
        if self._grasp is None or angle_between(turn, self._turn) > 0.35:
            avoid = truth.pull_direction(self._place)[:2] if self._place in truth.drawers() else None
            grasp = choose_grasp(
                self._grip,
                truth.boxes(self._thing),
                truth.obstacles(self._thing),
                home=self._home,
                base=truth.base()[:2],
                avoid=avoid,
                refused=self._refused,
            )
            if grasp is None:
                # Too wide any way: above it, until it lies otherwise.
                grasp = Grasp(origin + np.array([0.0, 0.0, 0.1]), truth.tool()[1], 0.0)
            self._grasp, self._turn = grasp, turn
            self._offset = turn.T @ (grasp.position - origin)
        here = origin + turn @ self._offset
        return Grasp(here, self._grasp.rotation, self._grasp.yaw)


def way_out(load: np.ndarray, obstacles: np.ndarray) -> np.ndarray | None:
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
