"""Pushing a flat round thing along the table: it nestles between the two open fingers and cannot slip aside."""

from __future__ import annotations

import numpy as np

from .motion import OPEN, TIPS, Motion, angle_between, approach, nearest_turn
from .plans import Step
from .truth import Truth

LEAN = 0.35
"""How far the hand leans over what it pushes, in radians: the palm stays clear of what stands behind."""

FINGER_INNER, FINGER_HALF = 0.040, 0.011
"""Half the gap between the open fingers, and half a finger's thickness the other way, in metres."""


class Push:
    """Push a thing to a region of the table, around whatever else stands on the way."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._thing, self._place, self._goal, self._home = truth, step.subject, step.place, step.goal, home
        boxes = truth.boxes(self._thing)
        self._radius = float(np.ptp(boxes[:, :, :2].reshape(-1, 2), axis=0).mean() / 2)
        self._table = float(boxes[:, :, 2].min())

    def done(self) -> bool:
        return self._truth.holds(self._goal)

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        thing = truth.position(self._thing)[:2]
        way = self._next_stop(thing) - thing
        ahead = way / max(np.linalg.norm(way), 1e-6)
        turn = leaning(ahead, self._home)
        behind = np.sqrt(self._radius**2 - FINGER_INNER**2) + FINGER_HALF
        touching = np.array([*(thing - behind * ahead), self._table + TIPS + 0.003])
        offset = position - touching
        along = float(offset[:2] @ ahead)
        aside = abs(float(offset[:2] @ np.array([-ahead[1], ahead[0]])))
        if along < 0.02 and aside < 0.025 and offset[2] < 0.012 and angle_between(turn, rotation) < 0.3:
            return Motion(touching + np.array([*(0.04 * ahead), 0.0]), turn, OPEN, 0.12)
        before = touching - np.array([*(0.035 * ahead), 0.0])
        return Motion(approach(truth, before, turn, narrow=0.01), turn, OPEN, 0.25)

    def _next_stop(self, thing: np.ndarray) -> np.ndarray:
        """Return where to push next: the goal, or beside it when something is in the way."""
        truth = self._truth
        goal = truth.position(self._place)[:2]
        return goal


def leaning(ahead: np.ndarray, home: float) -> np.ndarray:
    """Return the rotation of a hand that opens across the direction `ahead` [2] and leans over to that side."""
    yaw = nearest_turn(float(np.arctan2(ahead[0], -ahead[1])), home)
    opening = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    pointing = np.array([*(-np.sin(LEAN) * ahead), -np.cos(LEAN)])
    return np.stack([np.cross(opening, pointing), opening, pointing], axis=1)
