"""The scripted demonstrator of the desk: it achieves a task's goals one after the other, from privileged state.

Each decision depends on the present state (tool, gripper, objects) and not on a clock: a policy without memory can
imitate it, and it recovers from a push, a slip or a missed grasp. Speeds are random and executed commands noisy: see
`sim/action_noise.py`. Lengths are in metres and angles in radians; actions leave in the contract's units.
"""

from __future__ import annotations

import numpy as np

from ...action_noise import ActionNoise
from .. import arm
from ..environment import DeskEnv
from ..fixtures import Drawer
from ..tasks.goals import (
    CloseDrawerGoal,
    Goal,
    OpenDrawerGoal,
    PlaceGoal,
    PourGoal,
    PressButtonGoal,
    PushGoal,
    TurnKnobGoal,
)
from ..tasks.kitchen import KitchenArrangement
from . import skills
from .kinematics import Kinematics
from .skills import HandState, ToolTarget

SPEED_RANGE = (0.20, 0.26)
"""Range of the tool's speed, drawn once per episode, in m/s."""

POSITION_GAIN = 6.0
"""Proportional gain of the tool's velocity on its position error, in 1/s."""

MAX_VELOCITY_CHANGE = 0.05
"""How much the tool's velocity may change in one control step, in m/s."""

MIN_TOOL_HEIGHT = 0.008
"""The tool is never sent below this height."""

PITCH_RATE = 0.08
"""How much the pitch may change in one control step if a skill sets it."""

NOISE_LEVELS_DEGREES = (0.2, 0.6, 1.2)
"""Standard deviations of the noise on joints; one is drawn per episode."""

JOINT_NOISE_SCALES = (1.0, 0.8, 0.8, 0.8, 0.8, 0.0)
"""Factors on the noise of the six joints; the gripper has none."""

AIM_STD = 0.0015
"""Standard deviation of the horizontal error with which an episode's grasps aim."""


class DeskDemonstrator:
    """The demonstrator of one episode; make a new one after every reset.

    Args:
        env: The desk after `reset`.
        rng: Source of the speed, the aim and the noise.
        noise: Scale of the aim's error and of the noise on executed commands; 0 for none.
    """

    def __init__(self, env: DeskEnv, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._env = env
        self._kinematics = Kinematics()
        arrangement = env.task_spec.arrangement
        self._in_kitchen = isinstance(arrangement, KitchenArrangement)
        self._drawer = arrangement.drawer if isinstance(arrangement, KitchenArrangement) else None
        # Seeds stay valid only if these draws keep their order.
        self._speed = rng.uniform(*SPEED_RANGE)
        noise_std = noise * np.deg2rad(rng.choice(NOISE_LEVELS_DEGREES) * np.array(JOINT_NOISE_SCALES))
        self._aim = rng.normal(0.0, AIM_STD, 2) * noise
        self._action_noise = ActionNoise(noise_std, rng)
        self._velocity = np.zeros(3)

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the noisy command to execute.

        Returns:
            Two float32 [6]: absolute joint targets in degrees, and 0 to 100 for the gripper.
        """
        if self._env.is_waiting():
            held = arm.to_units(self._env.data.ctrl.copy()).astype(np.float32)
            return held, held
        joints = self._env.joints()  # [6]
        tool_position = self._kinematics.tool_position(joints)  # [3]
        goal = self._env.current_goal()
        hand = HandState(tool_position, joints[5], self._kinematics.pitch(joints), self._speed, self._aim)
        target = self._plan(goal, hand)
        self._velocity = self._accelerate(tool_position, target.position, target.speed)
        next_position = tool_position + self._velocity / arm.CONTROL_HZ
        next_position[2] = max(next_position[2], MIN_TOOL_HEIGHT)
        pitch = _default_pitch(next_position) if target.pitch is None else target.pitch
        if self._in_kitchen:
            pitch = max(pitch, _min_pitch_at_height(next_position))
        if target.pitch is not None:
            pitch = np.clip(pitch, hand.pitch - PITCH_RATE, hand.pitch + PITCH_RATE)
        arm_joints = self._kinematics.solve(next_position, joints, pitch=float(pitch))  # [5]
        action = np.append(arm_joints, target.gripper)  # [6]
        action_noise = self._action_noise.sample()
        # Near the desk, or with the object between the fingers, reduce the noise so that nothing is thrown.
        touching = self._env.finger_contacts(goal.target)
        noise_scale = 0.3 if touching else np.clip((tool_position[2] - 0.03) / 0.05, 0.1, 1.0)
        command = np.clip(action + target.noise_scale * noise_scale * action_noise, *arm.JOINT_RANGES.T)
        return arm.to_units(action).astype(np.float32), arm.to_units(command).astype(np.float32)

    def _plan(self, goal: Goal, hand: HandState) -> ToolTarget:
        """Choose the skill that the goal needs in the present state, and return its target."""
        desk, drawer = self._env, self._drawer
        match goal:
            case PlaceGoal(receptacle=Drawer()) if drawer and not skills.has_room(desk, hand, drawer):
                return skills.pull_open(desk, hand, drawer)
            case PlaceGoal() if drawer and skills.is_hooked(desk, hand, drawer):
                return skills.unhook(hand)
            case PlaceGoal(target_object=target_object, receptacle=receptacle):
                return skills.pick_and_place(desk, hand, target_object, receptacle)
            case OpenDrawerGoal(drawer=drawer):
                return skills.pull_open(desk, hand, drawer)
            case CloseDrawerGoal(drawer=drawer):
                return skills.push_shut(desk, hand, drawer)
            case PressButtonGoal(button=button):
                return skills.press(desk, hand, button)
            case TurnKnobGoal(knob=knob):
                return skills.push(hand, knob.lever_position(desk), knob.push_direction(desk), behind=0.026)
            case PushGoal(target_object=target_object, mat=mat):
                return skills.push_onto(desk, hand, target_object, mat)
            case PourGoal(cup=cup, basin=basin):
                return skills.pour(desk, hand, cup, basin)
        raise TypeError(f"no skill achieves {goal!r}")

    def _accelerate(self, tool_position: np.ndarray, target_position: np.ndarray, speed: float) -> np.ndarray:
        """Return the tool's next velocity [3] in m/s: proportional control with a limit on speed and acceleration."""
        error = target_position - tool_position  # [3]
        distance = np.linalg.norm(error)
        velocity = error / max(distance, 1e-6) * min(speed, POSITION_GAIN * distance)
        change = velocity - self._velocity
        # The limit makes starts smooth; braking is smooth already, by the proportional law.
        return self._velocity + change * min(1.0, MAX_VELOCITY_CHANGE / max(np.linalg.norm(change), 1e-6))


def _default_pitch(position: np.ndarray) -> float:
    """Return the usual pitch at a position: 0 (straight down) near the base, up to 0.6 far from it."""
    radius = np.hypot(position[0] - arm.PAN_AXIS_POSITION[0], position[1])
    return float(np.clip((radius - 0.17) / 0.06, 0.0, 1.0) * 0.6)


def _min_pitch_at_height(position: np.ndarray) -> float:
    """Return the least pitch at a position: high up, the wrist's range does not allow a hand that points straight down.

    Only kitchens apply it. In tasks with the bin alone the hand does not come where it matters, and their
    demonstrations stay as published.
    """
    return float(np.clip((position[2] - 0.09) / 0.05, 0.0, 1.0) * 0.6)
