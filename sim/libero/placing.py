"""Taking a thing and putting it on or into a place.

The skill looks at what is there and not at a clock, so it takes up the work where a slip or a push has left it. What it
keeps in mind is the grasp that it has chosen, until that has failed.
"""

from __future__ import annotations

import numpy as np

from .grasps import Grasp, choose_grasp, grip_of
from .motion import CLOSE, HAND_HALF, OPEN, PALM, Motion, angle_between, approach, overlaps
from .plans import Step
from .truth import Truth

EMPTY = 0.002
"""Opening below which the closed fingers hold nothing, in metres."""


class Place:
    """Take a thing and put it on or into a place."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._thing, self._place, self._goal = truth, step.subject, step.place, step.goal
        self._home = home
        self._grip = grip_of(self._thing)
        self._grasp: Grasp | None = None
        self._turn = np.eye(3)
        self._refused: tuple[float, ...] = ()
        self._reopening = False
        self._inside = step.goal[0] == "in"

    def done(self) -> bool:
        truth = self._truth
        return truth.holds(self._goal) and truth.finger_contacts(self._thing) == 0 and truth.opening() > 0.05

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        held = truth.finger_contacts(self._thing) == 2 and truth.opening() > EMPTY
        if self._arrived(held):
            # Let go, and only then leave.
            free = truth.finger_contacts(self._thing) == 0
            return Motion(position + np.array([0.0, 0.0, 0.05 * free]), rotation, OPEN, 0.15)
        if held and truth.firm():
            return self._carry(position)
        return self._reach(position)

    def _arrived(self, held: bool) -> bool:
        truth = self._truth
        if not truth.holds(self._goal):
            return False
        if not self._inside or not held:
            return True
        aside = np.linalg.norm(truth.position(self._thing)[:2] - self._destination()[:2])
        return bool(aside < 0.02 and truth.tool()[0][2] < self._lowest() + 0.012)

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
            self._refused = (*self._refused[-2:], self._yaw(grasp.rotation))
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
        rotation = self._grasp.rotation if self._grasp is not None else truth.tool()[1]
        place = self._destination()
        thing = truth.position(self._thing)
        boxes = truth.boxes(self._thing)
        hanging = position[2] - boxes[:, :, 2].min()
        width = float(np.ptp(boxes[:, :, :2].reshape(-1, 2), axis=0).max() / 2)
        goal = np.array([*(position[:2] + place[:2] - thing[:2]), self._lowest()])
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
            place = place + out * (np.abs(truth.half_size(self._place) @ np.abs(out)) - 0.035)
        return place

    def _lowest(self) -> float:
        """Return how low the hand may go at the destination: the thing on its place, the palm above what is beside."""
        truth = self._truth
        position, rotation = truth.tool()
        hanging = position[2] - truth.boxes(self._thing)[:, :, 2].min()
        place = self._destination()
        centre = position[:2] + place[:2] - truth.position(self._thing)[:2]
        opening = rotation[:2, 1] / max(np.linalg.norm(rotation[:2, 1]), 1e-6)
        boxes = truth.obstacles(self._thing)
        under = overlaps(boxes, centre, opening, HAND_HALF + 0.008)
        palm = max(boxes[under][:, :, 2].max(initial=-np.inf) - PALM + 0.006, -np.inf) if under.any() else -np.inf
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
        return Grasp(here, self._grasp.rotation, self._grasp.width)

    @staticmethod
    def _yaw(rotation: np.ndarray) -> float:
        return float(np.arctan2(rotation[1, 1], rotation[0, 1]))
