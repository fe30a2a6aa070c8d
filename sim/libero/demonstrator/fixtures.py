"""Working what stands still: pulling and pushing drawers, turning knobs, closing doors."""

from __future__ import annotations

import numpy as np

from ....errors import WorldError
from .grasps import KNOB, choose_grasp
from .motion import CLOSE, EMPTY, OPEN, Motion, angle_between, approach, downward, nearest_turn, turned
from .plans import Step
from .truth import Truth


def tilted(truth: Truth, direction: np.ndarray, tilt: float, *, level: bool) -> np.ndarray:
    """Return the hand's rotation when it points along a level `direction` [3], `tilt` radians below.

    Its fingers open sideways if `level`, else upwards. Of the two ways to hold it so, the one nearer to how it is held.
    """
    ahead = direction * np.cos(tilt) - np.array([0.0, 0.0, np.sin(tilt)])
    side = np.cross(direction, [0.0, 0.0, 1.0])
    opening = side if level else np.cross(ahead, side)
    choices = [np.stack([np.cross(each, ahead), each, ahead], axis=1) for each in (opening, -opening)]
    now = truth.tool()[1]
    return min(choices, key=lambda rotation: angle_between(rotation, now))


class Pull:
    """Open a drawer by its handle, the hand tilted so that its fingers get above and below the bar."""

    TILT = 0.3
    """How far below the horizontal the hand points, in radians."""

    def __init__(self, truth: Truth, step: Step) -> None:
        self._truth, self._region, self._goal = truth, step.subject, step.goal
        self._out = truth.pull_direction(self._region)
        self._rotation = tilted(truth, -self._out, self.TILT, level=False)

    def holds(self) -> bool:
        # What was opened to put something in may be closed after.
        return not self._goal or self._truth.holds(self._goal)

    def done(self) -> bool:
        truth = self._truth
        if not truth.holds(("open", self._region)) or truth.finger_contacts(truth.owner_of(self._region)):
            return False
        way = truth.tool()[0] - truth.handle(self._region)
        return bool(way @ self._out > 0.09 or np.linalg.norm(way) > 0.15)

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
        aligned = angle_between(self._rotation, rotation) < 0.15
        closing = truth.opening() < 0.068
        if truth.opening() > EMPTY and aside < 0.015 and abs(along) < (0.02 if closing else 0.010):
            return Motion(target, self._rotation, CLOSE, 0.05)
        # Before the handle first, and straight ahead from there.
        back = 0.10 * np.clip((aside - 0.010) / 0.02, 0.0, 1.0) if aligned else 0.10
        heading = target - back * ahead
        if aside > 0.10:
            heading[2] = max(heading[2] + 0.08, position[2] - 0.03) if aside > 0.15 else heading[2] + 0.08
        return Motion(heading, self._rotation, OPEN, 0.25 if back > 0.05 else 0.15)


class TurnKnob:
    """Take a knob between the fingers and turn it."""

    def __init__(self, truth: Truth, step: Step, home: float) -> None:
        self._truth, self._fixture, self._goal, self._home = truth, step.subject, step.goal, home
        self._joint = truth.joint_of(self._fixture)
        self._body = truth.model.body(truth.model.jnt_bodyid[self._joint]).name
        self._gripped = self._reopening = False

    def holds(self) -> bool:
        return self._truth.holds(self._goal)

    def done(self) -> bool:
        return self.holds() and self._truth.opening() > 0.06

    def act(self) -> Motion:
        truth = self._truth
        position, rotation = truth.tool()
        if truth.holds(self._goal):
            return Motion(position + np.array([0.0, 0.0, 0.03]) * (truth.opening() > 0.05), rotation, OPEN, 0.1)
        boxes = truth.part_boxes(self._body)
        top = boxes[:, :, 2].max()
        handle = boxes[boxes[:, :, 2].max(1) > top - 0.004]
        grasp = choose_grasp(KNOB, handle, np.zeros((0, 8, 3)), home=self._home)
        if grasp is None:
            raise WorldError(f"{self._fixture}: its knob is wider than the fingers open")
        target, turn = grasp.position, grasp.rotation
        aside, above = np.linalg.norm(position[:2] - target[:2]), abs(position[2] - target[2])
        opening = truth.opening()
        near = aside < 0.02 and above < 0.02
        aligned = angle_between(turn, rotation) < 0.2
        self._gripped = near and EMPTY < opening < 0.04 and (self._gripped or truth.finger_contacts(self._fixture) == 2)
        too_far = angle_between(rotation, downward(self._home)) > 1.4
        self._reopening = opening < 0.07 and (self._reopening or too_far or (near and opening < EMPTY))
        if self._gripped and not self._reopening:
            sense = np.sign(truth.joint_axis(self._joint)[2])
            return Motion(target, turned(rotation, 0.5 * sense), CLOSE, 0.15)
        if near and not self._reopening and (opening < 0.068 or (aside < 0.008 and aligned)):
            return Motion(target, turn, CLOSE, 0.15)
        if self._reopening:
            return Motion(position, rotation, OPEN, 0.1)
        heading = approach(truth, target, turn, ignored=(self._fixture,))
        return Motion(heading, turn, OPEN, 0.15 if aside < 0.05 else 0.3)


class Shut:
    """Close a drawer, pushing at its handle with closed fingers, the hand leaning back from what is above."""

    TILT = 0.85
    """How far below the horizontal the hand points, in radians."""

    def __init__(self, truth: Truth, step: Step) -> None:
        self._truth, self._region, self._goal = truth, step.subject, step.goal
        self._out = truth.pull_direction(self._region)
        self._rotation = tilted(truth, -self._out, self.TILT, level=True)
        self._joint = truth.joint_of(self._region)

    def holds(self) -> bool:
        return self._truth.holds(self._goal)

    def done(self) -> bool:
        return self.holds()

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

    def holds(self) -> bool:
        return self._truth.holds(self._goal)

    def done(self) -> bool:
        return self.holds()

    def act(self) -> Motion:
        truth = self._truth
        position, _ = truth.tool()
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
