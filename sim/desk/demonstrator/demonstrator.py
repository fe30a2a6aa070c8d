"""The scripted demonstrator: does what the task's goals ask for, one after the other, from privileged state.

What it does next is a function of what is there now (where the tool, the object and the gripper are), not of a clock:
a policy without memory can learn it, and it recovers from a push, a slip or a missed grasp by itself. Varied speeds
and commands disturbed on the way show the states from which recovery starts, with the undisturbed action as the label
(as in DART, Laskey et al., 2017).
"""

from __future__ import annotations

import numpy as np

from .. import arm
from ..environment import DeskEnv
from ..fixtures import Drawer
from ..goals import Goal, Opened, Poured, Pressed, Pushed, Put, Shut, Turned
from ..kitchen import Kitchen
from . import skills
from .kinematics import Kinematics
from .skills import Hand, Motion

LEAN_RATE = 0.08
"""How far the hand leans in one control step when a skill decides how far it leans, in radians."""


class Demonstrator:
    """Acts in one desk environment; a new one is made after every reset.

    `noise` scales the disturbance: 0 gives the plain motion.
    """

    def __init__(self, env: DeskEnv, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._env, self._rng = env, rng
        self._kinematics = Kinematics()
        arrangement = env.spec_task.arrangement
        self._in_kitchen = isinstance(arrangement, Kitchen)
        self._drawer = arrangement.drawer if self._in_kitchen else None
        self._speed = rng.uniform(0.20, 0.26)
        self._velocity = np.zeros(3)
        self._disturbance = np.zeros(6)
        self._spread = noise * np.deg2rad(rng.choice([0.2, 0.6, 1.2]) * np.array([1.0, 0.8, 0.8, 0.8, 0.8, 0.0]))
        self._aim = rng.normal(0.0, 0.0015, 2) * noise

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the disturbed command to execute, both float32 [6] in the arm's units."""
        if self._env.waiting():
            still = arm.to_units(self._env.data.ctrl.copy()).astype(np.float32)
            return still, still
        joints = self._env.joints()
        tool = self._kinematics.tool(joints)
        goal = self._env.current_goal()
        hand = Hand(tool, joints[5], self._kinematics.lean(joints), self._speed, self._aim)
        motion = self._plan(goal, hand)
        self._velocity = self._accelerate(tool, motion.goal, motion.speed)
        wanted = tool + self._velocity / arm.CONTROL_HZ
        wanted[2] = max(wanted[2], 0.008)
        lean = _lean(wanted) if motion.lean is None else motion.lean
        if self._in_kitchen:
            lean = max(lean, _lean_high_up(wanted))
        if motion.lean is not None:
            lean = np.clip(lean, hand.lean - LEAN_RATE, hand.lean + LEAN_RATE)
        action = np.append(self._kinematics.solve(wanted, joints, lean=lean), motion.gripper)
        self._disturbance = 0.9 * self._disturbance + 0.45 * self._rng.normal(0.0, self._spread)
        # Near the desk, and with something between the fingers, only a little: enough to vary, not to throw.
        calm = 0.3 if self._env.finger_contacts(goal.target) else np.clip((tool[2] - 0.03) / 0.05, 0.1, 1.0)
        command = np.clip(action + motion.calm * calm * self._disturbance, *arm.RANGES.T)
        return arm.to_units(action).astype(np.float32), arm.to_units(command).astype(np.float32)

    def _plan(self, goal: Goal, hand: Hand) -> Motion:
        """Choose the skill that the goal asks for now."""
        desk, drawer = self._env, self._drawer
        match goal:
            case Put(place=Drawer()) if drawer and not skills.has_room(desk, hand, drawer):
                return skills.pull_open(desk, hand, drawer)
            case Put() if drawer and skills.is_hooked(desk, hand, drawer):
                return skills.unhook(hand)
            case Put(thing=thing, place=place):
                return skills.put(desk, hand, thing, place)
            case Opened(drawer=drawer):
                return skills.pull_open(desk, hand, drawer)
            case Shut(drawer=drawer):
                return skills.push_shut(desk, hand, drawer)
            case Pressed(button=button):
                return skills.press(desk, hand, button)
            case Turned(knob=knob):
                return skills.push(hand, knob.lever_at(desk), knob.push_direction(desk), behind=0.026)
            case Pushed(thing=thing, mat=mat):
                return skills.push_onto(desk, hand, thing, mat)
            case Poured(cup=cup, basin=basin):
                return skills.pour(desk, hand, cup, basin)
        raise TypeError(f"no skill achieves {goal!r}")

    def _accelerate(self, tool: np.ndarray, goal: np.ndarray, speed: float) -> np.ndarray:
        error = goal - tool
        distance = np.linalg.norm(error)
        wanted = error / max(distance, 1e-6) * min(speed, 6.0 * distance)
        change = wanted - self._velocity
        # A limit on acceleration makes the motion smooth; braking is already smooth, by the proportional law.
        return self._velocity + change * min(1.0, 0.05 / max(np.linalg.norm(change), 1e-6))


def _lean(position: np.ndarray) -> float:
    """Return how far the fingers lean outward at a position: straight down near, up to 0.6 rad far out."""
    radius = np.hypot(position[0] - 0.0388353, position[1])
    return float(np.clip((radius - 0.17) / 0.06, 0.0, 1.0) * 0.6)


def _lean_high_up(position: np.ndarray) -> float:
    """Return how far the fingers have to lean outward high up, where the wrist does not bend far enough.

    The bin alone is never so far from the way that it is needed there: its demonstrations stay what they were.
    """
    return float(np.clip((position[2] - 0.09) / 0.05, 0.0, 1.0) * 0.6)
