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
from ..goals import CloseDrawerGoal, Goal, OpenDrawerGoal, PlaceGoal, PourGoal, PressButtonGoal, PushGoal, TurnKnobGoal
from ..kitchen import KitchenArrangement
from . import skills
from .kinematics import Kinematics
from .skills import HandState, ToolTarget

PITCH_RATE = 0.08
"""How far the hand leans in one control step when a skill decides how far it leans, in radians."""


class DeskDemonstrator:
    """Acts in one desk environment; a new one is made after every reset.

    `noise` scales the disturbance: 0 gives the plain motion.
    """

    def __init__(self, env: DeskEnv, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._env, self._rng = env, rng
        self._kinematics = Kinematics()
        arrangement = env.task_spec.arrangement
        self._in_kitchen = isinstance(arrangement, KitchenArrangement)
        self._drawer = arrangement.drawer if self._in_kitchen else None
        self._speed = rng.uniform(0.20, 0.26)
        self._velocity = np.zeros(3)
        self._action_noise = np.zeros(6)
        self._noise_std = noise * np.deg2rad(rng.choice([0.2, 0.6, 1.2]) * np.array([1.0, 0.8, 0.8, 0.8, 0.8, 0.0]))
        self._aim = rng.normal(0.0, 0.0015, 2) * noise

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the disturbed command to execute, both float32 [6] in the arm's units."""
        if self._env.is_waiting():
            still = arm.to_units(self._env.data.ctrl.copy()).astype(np.float32)
            return still, still
        joints = self._env.joints()
        tool_position = self._kinematics.tool_position(joints)
        position = self._env.current_goal()
        hand = HandState(tool_position, joints[5], self._kinematics.pitch(joints), self._speed, self._aim)
        motion = self._plan(position, hand)
        self._velocity = self._accelerate(tool_position, motion.position, motion.speed)
        wanted = tool_position + self._velocity / arm.CONTROL_HZ
        wanted[2] = max(wanted[2], 0.008)
        pitch = _default_pitch(wanted) if motion.pitch is None else motion.pitch
        if self._in_kitchen:
            pitch = max(pitch, _min_pitch_at_height(wanted))
        if motion.pitch is not None:
            pitch = np.clip(pitch, hand.pitch - PITCH_RATE, hand.pitch + PITCH_RATE)
        action = np.append(self._kinematics.solve(wanted, joints, pitch=pitch), motion.gripper)
        self._action_noise = 0.9 * self._action_noise + 0.45 * self._rng.normal(0.0, self._noise_std)
        # Near the desk, and with something between the fingers, only a little: enough to vary, not to throw.
        noise_scale = (
            0.3 if self._env.finger_contacts(position.target) else np.clip((tool_position[2] - 0.03) / 0.05, 0.1, 1.0)
        )
        command = np.clip(action + motion.noise_scale * noise_scale * self._action_noise, *arm.JOINT_RANGES.T)
        return arm.to_units(action).astype(np.float32), arm.to_units(command).astype(np.float32)

    def _plan(self, position: Goal, hand: HandState) -> ToolTarget:
        """Choose the skill that the goal asks for now."""
        desk, drawer = self._env, self._drawer
        match position:
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
        raise TypeError(f"no skill achieves {position!r}")

    def _accelerate(self, tool_position: np.ndarray, position: np.ndarray, speed: float) -> np.ndarray:
        error = position - tool_position
        distance = np.linalg.norm(error)
        wanted = error / max(distance, 1e-6) * min(speed, 6.0 * distance)
        change = wanted - self._velocity
        # A limit on acceleration makes the motion smooth; braking is already smooth, by the proportional law.
        return self._velocity + change * min(1.0, 0.05 / max(np.linalg.norm(change), 1e-6))


def _default_pitch(position: np.ndarray) -> float:
    """Return how far the fingers lean outward at a position: straight down near, up to 0.6 rad far out."""
    radius = np.hypot(position[0] - 0.0388353, position[1])
    return float(np.clip((radius - 0.17) / 0.06, 0.0, 1.0) * 0.6)


def _min_pitch_at_height(position: np.ndarray) -> float:
    """Return how far the fingers have to lean outward high up, where the wrist does not bend far enough.

    The bin alone is never so far from the way that it is needed there: its demonstrations stay what they were.
    """
    return float(np.clip((position[2] - 0.09) / 0.05, 0.0, 1.0) * 0.6)
