"""The scripted demonstrator for LIBERO: it achieves a task's goal predicates from privileged state.

Each decision depends on the present state (hand, fingers, objects) and not on a clock: a policy without memory can
imitate it, and it recovers from a slip or a missed grasp. Speeds are random and executed commands noisy: see
`sim/action_noise.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...action_noise import ActionNoise
from .motion import rotation_vector
from .plans import plan
from .privileged_state import PrivilegedState
from .skills import DemonstratorSkill, make_skill

if TYPE_CHECKING:
    from ..environment import LiberoEnv

METRES_PER_ACTION, RADIANS_PER_ACTION = 0.05, 0.5
"""Step of robosuite's OSC_POSE controller for an action of 1: metres along and radians about an axis."""

SPEED_PER_ACTION = 0.306
"""Speed in m/s under a constant action of 1: the controller has stiffness 150 and is critically damped."""

GAIN = 1.4
"""Factor on the remaining translation: the controller covers only a part of it within one step."""

MAX_ROTATION = 0.4
"""Limit of the rotation that one action asks for, in radians."""

SPEED_SCALE_RANGE = (0.8, 1.0)
"""Range of the factor on speed limits; one is drawn per episode."""

NOISE_LEVELS = (0.04, 0.10, 0.18)
"""Standard deviations of the noise on actions, as fractions of the controller's largest step; one is drawn per
episode."""

NOISE_SCALES = (1.0, 1.0, 1.0, 0.15, 0.15, 0.15)
"""Factors on the noise of the translation and of the rotation."""


class LiberoDemonstrator:
    """The demonstrator of one episode; make a new one after every reset.

    Args:
        env: LIBERO after `reset`.
        rng: Source of the speed and the noise.
        noise: Scale of the noise on executed commands; 0 for none.
    """

    def __init__(self, env: LiberoEnv, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._conventions = env.conventions
        self._state = state = PrivilegedState(env.simulation.environment)
        opening_axis = state.tool_pose()[1][:, 1]
        home_yaw = float(np.arctan2(opening_axis[1], opening_axis[0]))
        steps = plan(state.goals, drawers=state.drawers())
        self._skills: list[DemonstratorSkill] = [make_skill(state, step, home_yaw) for step in steps]
        self._finished: set[int] = set()
        self._speed_scale = rng.uniform(*SPEED_SCALE_RANGE)
        noise_std = noise * rng.choice(NOISE_LEVELS) * np.array(NOISE_SCALES)
        self._action_noise = ActionNoise(noise_std, rng)

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the noisy command to execute.

        Returns:
            Two float32 [7] in the environment's conventions: fractions of the controller's largest step along and about
            the axes of the world frame, then the gripper.
        """
        target = self._current_skill().next_hand_target()
        position, rotation = self._state.tool_pose()
        translation = (target.position - position) * GAIN  # [3], metres in the world frame
        max_translation = target.speed * self._speed_scale / SPEED_PER_ACTION * METRES_PER_ACTION
        translation *= min(1.0, max_translation / max(np.linalg.norm(translation), 1e-9))
        rotation_error = rotation_vector(target.rotation @ rotation.T)  # [3], radians in the world frame
        rotation_error *= min(1.0, MAX_ROTATION / max(np.linalg.norm(rotation_error), 1e-9))
        action = np.clip(
            np.concatenate([translation / METRES_PER_ACTION, rotation_error / RADIANS_PER_ACTION, [target.gripper]]),
            -1.0,
            1.0,
        )
        action_noise = self._action_noise.sample()
        # Slow motions are near objects or carry one: reduce the noise so that nothing is thrown.
        noise_scale = np.clip((target.speed - 0.05) / 0.2, 0.05, 1.0)
        command = action.copy()
        command[:6] = np.clip(action[:6] + noise_scale * action_noise, -1.0, 1.0)
        to_environment = self._conventions.from_robosuite_action
        return to_environment(action), to_environment(command)

    def _current_skill(self) -> DemonstratorSkill:
        """Return the first skill that is not finished, or whose goal no longer holds."""
        for number, skill in enumerate(self._skills):
            if number in self._finished and skill.is_satisfied():
                continue
            if not skill.is_finished():
                self._finished.discard(number)
                return skill
            self._finished.add(number)
        return self._skills[-1]
