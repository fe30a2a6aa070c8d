"""The scripted demonstrator: picks the instructed object and puts it in the bin, from privileged state.

What it does next is a function of what is there now (where the tool, the object and the gripper are), not of a clock:
a policy without memory can learn it, and it recovers from a push, a slip or a missed grasp by itself. Varied speeds
and commands disturbed on the way show the states from which recovery starts, with the undisturbed action as the label
(as in DART, Laskey et al., 2017).
"""

from __future__ import annotations

import numpy as np

from . import arm
from .environment import DeskEnv
from .kinematics import Kinematics
from .objects import SHAPES
from .scene import BIN_CENTRE

OPEN, PRESS, MISSED = 0.90, -0.12, 0.12
"""Gripper angles in radians: open, where it presses to when closing, and where it must have missed."""

CARRY_HEIGHT, RELEASE_HEIGHT = 0.085, 0.075
GRIP_RATE = 0.16
"""How far the gripper turns in one control step, in radians."""

MARGIN = 0.009
"""Gap between the fixed finger and the object before the jaw closes, in metres."""


class Demonstrator:
    """Acts in one desk environment; a new one is made after every reset.

    `noise` scales the disturbance: 0 gives the plain motion.
    """

    def __init__(self, env: DeskEnv, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._env, self._rng = env, rng
        self._kinematics = Kinematics()
        self._target = env.spec_task.target.body
        _kind, size = SHAPES[env.spec_task.target.shape]
        self._half_width = size[0]
        self._speed = rng.uniform(0.20, 0.26)
        self._velocity = np.zeros(3)
        self._disturbance = np.zeros(6)
        self._spread = noise * np.deg2rad(rng.choice([0.2, 0.6, 1.2]) * np.array([1.0, 0.8, 0.8, 0.8, 0.8, 0.0]))
        self._aim = rng.normal(0.0, 0.0015, 2) * noise

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the disturbed command to execute, both float32 [6] in the arm's units."""
        joints = self._env.joints()
        tool = self._kinematics.tool(joints)
        goal, speed, gripper = self._plan(tool, joints[5])
        self._velocity = self._accelerate(tool, goal, speed)
        wanted = tool + self._velocity / arm.CONTROL_HZ
        wanted[2] = max(wanted[2], 0.008)
        action = np.append(self._kinematics.solve(wanted, joints, lean=_lean(wanted)), gripper)
        self._disturbance = 0.9 * self._disturbance + 0.45 * self._rng.normal(0.0, self._spread)
        # Near the desk, and with something between the fingers, only a little: enough to vary, not to throw.
        calm = 0.3 if self._env.finger_contacts(self._target) else np.clip((tool[2] - 0.03) / 0.05, 0.1, 1.0)
        command = np.clip(action + calm * self._disturbance, *arm.RANGES.T)
        return arm.to_units(action).astype(np.float32), arm.to_units(command).astype(np.float32)

    def _plan(self, tool: np.ndarray, gripper: float) -> tuple[np.ndarray, float, float]:
        """Return where the tool should go, how fast at most, and the gripper's next angle."""
        thing = self._env.position(self._target)
        touching = self._env.finger_contacts(self._target)
        bin_offset = np.linalg.norm(thing[:2] - BIN_CENTRE)
        if touching == 2 and bin_offset > 0.014:
            return self._carry(tool, thing), self._speed, max(gripper - GRIP_RATE, PRESS)
        if bin_offset < 0.04:
            return np.array([*tool[:2], max(tool[2], RELEASE_HEIGHT)]), 0.1, min(gripper + GRIP_RATE, OPEN)
        return self._reach(tool, thing, gripper, touching)

    def _carry(self, tool: np.ndarray, thing: np.ndarray) -> np.ndarray:
        high = np.clip((tool[2] - 0.035) / 0.035, 0.0, 1.0)
        return np.array([*(tool[:2] + high * (BIN_CENTRE - thing[:2])), CARRY_HEIGHT])

    def _reach(
        self, tool: np.ndarray, thing: np.ndarray, gripper: float, touching: int
    ) -> tuple[np.ndarray, float, float]:
        grasp = np.array([*(thing[:2] - self._grasp_offset(thing[:2]) + self._aim), max(thing[2] - 0.003, 0.010)])
        aside = np.linalg.norm(tool[:2] - grasp[:2])
        closing = gripper < OPEN - 0.25
        aligned = aside < (0.018 if closing else 0.006) and abs(tool[2] - grasp[2]) < (0.015 if closing else 0.006)
        if aligned and not (gripper < MISSED and touching == 0):
            return grasp, 0.05, max(gripper - GRIP_RATE, PRESS)
        # A funnel: far aside stay above everything, come down as the tool comes over the grasp.
        above = np.clip((aside - 0.004) * 6.0, 0.0, 0.06)
        return np.array([*grasp[:2], grasp[2] + above]), self._speed, min(gripper + GRIP_RATE, OPEN)

    def _grasp_offset(self, at: np.ndarray) -> np.ndarray:
        """Return the shift from the tool, which lies at the fixed finger, to the middle of the jaws."""
        angle = np.arctan2(at[1], at[0] - 0.0388353)
        return (self._half_width + MARGIN) * np.array([-np.sin(angle), np.cos(angle)])

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
