"""Working what stands still: pulling and pushing drawers, turning knobs, closing doors."""

from __future__ import annotations

import numpy as np

from .grasps import KNOB, choose_grasp
from .motion import CLOSE, OPEN, Motion, angle_between, approach, downward, nearest_turn, turned
from .plans import Step
from .truth import Truth

EMPTY = 0.002
"""Opening below which the closed fingers hold nothing, in metres."""


def tilted(truth: Truth, direction: np.ndarray, tilt: float) -> np.ndarray:
    """Return the hand's rotation when it points along a level `direction` [3], `tilt` radians below; it opens upwards.

    Of the two ways to hold it so, the one nearer to how the hand is held now.
    """
    ahead = direction * np.cos(tilt) - np.array([0.0, 0.0, np.sin(tilt)])
    side = np.cross(direction, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    choices = []
    for sign in (1.0, -1.0):
        opening = sign * np.cross(ahead, side)
        choices.append(np.stack([np.cross(opening, ahead), opening, ahead], axis=1))
    now = truth.tool()[1]
    return min(choices, key=lambda rotation: angle_between(rotation, now))


class Pull:
    """Open a drawer by its handle, the hand tilted so that its fingers get above and below the bar."""

    TILT = 0.3
    """How far below the horizontal the hand points, in radians."""

    def __init__(self, truth: Truth, step: Step) -> None:
        self._truth, self._region, self._goal = truth, step.subject, step.goal
        self._passing = step.goal is None
        self._opened = False
        self._out = truth.pull_direction(self._region)
        self._rotation = tilted(truth, -self._out, self.TILT)

    def done(self) -> bool:
        # Closing it again later is no reason to open it anew.
        truth = self._truth
        self._opened = self._opened or (truth.holds(("open", self._region)) and self._clear())
        return self._opened

    def _clear(self) -> bool:
        if not self._truth.holds(("open", self._region)):
            return False
        return self._truth.finger_contacts(self._truth.owner_of(self._region)) == 0 and self._away() > 0.09

    def _away(self) -> float:
        return float((self._truth.tool()[0] - self._truth.handle(self._region)) @ self._out)

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        handle = truth.handle(self._region)
        ahead = self._rotation[:, 2]
        if truth.holds(("open", self._region)):
            leaving = truth.opening() > 0.05
            return Motion(position - 0.05 * leaving * ahead, self._rotation, OPEN, 0.15)
        touching = truth.finger_contacts(truth.owner_of(self._region)) == 2
        if touching and truth.firm():
            return Motion(position + 0.04 * self._out, self._rotation, CLOSE, 0.2)
        target = handle + 0.005 * ahead
        offset = position - target
        along = float(offset @ ahead)
        aside = float(np.linalg.norm(offset - along * ahead))
        turned = angle_between(self._rotation, rotation) < 0.12
        closing = truth.opening() < 0.068
        if truth.opening() > EMPTY and aside < 0.015 and abs(along) < (0.02 if closing else 0.010):
            return Motion(target, self._rotation, CLOSE, 0.05)
        # Before the handle first, and straight ahead from there.
        back = 0.10 if aside > 0.012 or not turned else 0.0
        heading = target - back * ahead
        if aside > 0.10:
            heading[2] = max(heading[2] + 0.08, position[2] - 0.03) if aside > 0.15 else heading[2] + 0.08
        return Motion(heading, self._rotation, OPEN, 0.25 if back else 0.15)


class TurnKnob:
    """Take a knob between the fingers and turn it."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._fixture, self._goal, self._home = truth, step.subject, step.goal, home
        self._joint = truth.joint_of(self._fixture)
        self._body = truth.model.body(truth.model.jnt_bodyid[self._joint]).name

    def done(self) -> bool:
        truth = self._truth
        return truth.holds(self._goal) and truth.opening() > 0.06

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        if truth.holds(self._goal):
            return Motion(position + np.array([0.0, 0.0, 0.03]) * (truth.opening() > 0.05), rotation, OPEN, 0.1)
        boxes = truth.part_boxes(self._body)
        top = boxes[:, :, 2].max()
        handle = boxes[boxes[:, :, 2].max(1) > top - 0.004]
        grasp = choose_grasp(KNOB, handle, np.zeros((0, 8, 3)), home=self._home)
        target, turn = grasp.position, grasp.rotation
        aside, above = np.linalg.norm(position[:2] - target[:2]), abs(position[2] - target[2])
        closing = truth.opening() < 0.068
        if truth.finger_contacts(self._fixture) == 2 and truth.firm() and truth.opening() > EMPTY:
            lead = 0.5 * np.sign(truth.joint_axis(self._joint)[2])
            return Motion(target, turned(rotation, lead), CLOSE, 0.1)
        if aside < (0.02 if closing else 0.008) and above < 0.02 and angle_between(turn, rotation) < 0.4:
            return Motion(target, turn, CLOSE, 0.05)
        heading = approach(truth, target, turn, ignored=(self._fixture,))
        return Motion(heading, turn, OPEN)


class Shut:
    """Close a drawer, pushing at its handle with closed fingers, the hand tilted as for opening it."""

    def __init__(self, truth: Truth, step: Step) -> None:
        self._truth, self._region, self._goal = truth, step.subject, step.goal
        self._out = truth.pull_direction(self._region)
        self._rotation = tilted(truth, -self._out, Pull.TILT)
        self._joint = truth.joint_of(self._region)

    def done(self) -> bool:
        return self._truth.holds(self._goal)

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        handle = truth.handle(self._region)
        offset = position - handle
        along = float(offset @ self._out)
        aside = float(np.linalg.norm(offset - along * self._out))
        if aside < 0.02 and along > -0.02 and angle_between(self._rotation, rotation) < 0.2:
            # A little beyond the handle: the last millimetres need a push.
            return Motion(handle - 0.05 * self._out, self._rotation, CLOSE, 0.15)
        before = handle + 0.09 * self._out
        if along < 0.05 or aside > 0.10:
            # Up over everything first, then down well before the handle.
            before = approach(truth, before, self._rotation, above=0.10, narrow=0.02)
        return Motion(before, self._rotation, CLOSE, 0.25)


class ShutDoor:
    """Close a door that swings, pushing its outer face with closed fingers that point down."""

    REACH = 0.65
    """Where along the door it is pushed: a fraction of the way from the hinge to the edge."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._fixture, self._goal, self._home = truth, step.subject, step.goal, home
        self._joint = truth.joint_of(self._fixture)
        self._body = truth.model.body(truth.model.jnt_bodyid[self._joint]).name

    def done(self) -> bool:
        return self._truth.holds(self._goal)

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        boxes = truth.part_boxes(self._body)
        hinge = truth.joint_anchor(self._joint)[:2]
        panel = boxes[np.argmax(np.ptp(boxes.reshape(len(boxes), -1, 3), axis=1).max(1))]
        centre = panel.mean(0)
        along = centre[:2] - hinge
        along /= np.linalg.norm(along)
        # Closing turns the door about the vertical, against the way it opens.
        sense = -np.sign(truth.joint_angle(self._joint)) * np.sign(truth.joint_axis(self._joint)[2])
        closing = sense * np.array([-along[1], along[0]])
        length = float(((panel[:, :2] - hinge) @ along).max())
        place = hinge + self.REACH * length * along
        height = boxes[:, :, 2].max() - 0.035
        yaw = np.arctan2(along[1], along[0])
        turn = downward(nearest_turn(yaw, self._home))
        offset = position[:2] - place
        behind = float(-offset @ closing)
        if position[2] < height + 0.03 and behind > 0.015 and abs(offset @ along) < 0.05:
            target = np.array([*(place + 0.03 * closing), height])
            return Motion(target, turn, CLOSE, 0.2)
        before = np.array([*(place - 0.07 * closing), height])
        return Motion(approach(truth, before, turn, narrow=0.02), turn, CLOSE, 0.25)
