"""The scripted demonstrator for LIBERO: brings about a task's goal predicates from privileged state.

What it does next is a function of what is there now (where the hand, the objects and the fingers are), not of a clock:
a policy without memory can learn it, and it recovers from a slip or a missed grasp by itself. Varied speeds and
commands disturbed on the way show the states from which recovery starts, with the undisturbed action as the label (as
in DART, Laskey et al., 2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .motion import rotation_vector
from .plans import plan
from .privileged_state import PrivilegedState
from .skills import DemonstratorSkill, make_skill

METRES_PER_ACTION, RADIANS_PER_ACTION = 0.05, 0.5
"""What an action of 1 asks of robosuite's OSC_POSE controller in one step, along and about an axis."""

SPEED_PER_ACTION = 0.306
"""The speed in m/s that a lasting action of 1 leads to: stiffness 150, critically damped."""

GAIN = 1.4
"""How much more than the remaining way is asked for: the controller makes only a part of a step in time."""


class LiberoDemonstrator:
    """Acts in one LIBERO environment; a new one is made after every reset.

    `noise` scales the disturbance: 0 gives the plain motion.
    """

    def __init__(self, env: Any, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._rng = rng
        self._conventions = env.conventions
        self._state = state = PrivilegedState(env.simulation.environment)
        opening_axis = state.tool_pose()[1][:, 1]
        home_yaw = float(np.arctan2(opening_axis[1], opening_axis[0]))
        steps = plan(state.goals, drawers=state.drawers())
        self._skills: list[DemonstratorSkill] = [make_skill(state, step, home_yaw) for step in steps]
        self._finished: set[int] = set()
        self._speed_scale = rng.uniform(0.8, 1.0)
        self._action_noise = np.zeros(6)
        self._noise_std = noise * rng.choice([0.04, 0.10, 0.18]) * np.array([1.0, 1.0, 1.0, 0.15, 0.15, 0.15])

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the disturbed command to execute, both float32 [7] in the environment's
        conventions."""
        motion = self._current().next_hand_target()
        position, rotation = self._state.tool_pose()
        translation = (motion.position - position) * GAIN
        longest = motion.speed * self._speed_scale / SPEED_PER_ACTION * METRES_PER_ACTION
        translation *= min(1.0, longest / max(np.linalg.norm(translation), 1e-9))
        rotation_error = rotation_vector(motion.rotation @ rotation.T)
        rotation_error *= min(1.0, 0.4 / max(np.linalg.norm(rotation_error), 1e-9))
        action = np.clip(
            np.concatenate([translation / METRES_PER_ACTION, rotation_error / RADIANS_PER_ACTION, [motion.gripper]]),
            -1.0,
            1.0,
        )
        self._action_noise = 0.9 * self._action_noise + 0.45 * self._rng.normal(0.0, self._noise_std)
        # Where it goes slowly something is near or held: enough to vary, not to throw.
        noise_scale = np.clip((motion.speed - 0.05) / 0.2, 0.05, 1.0)
        command = action.copy()
        command[:6] = np.clip(action[:6] + noise_scale * self._action_noise, -1.0, 1.0)
        to_environment = self._conventions.from_robosuite_action
        return to_environment(action), to_environment(command)

    def _current(self) -> DemonstratorSkill:
        """Return the first skill that is not finished, or whose work was undone."""
        for number, skill in enumerate(self._skills):
            if number in self._finished and skill.is_satisfied():
                continue
            if not skill.is_finished():
                self._finished.discard(number)
                return skill
            self._finished.add(number)
        return self._skills[-1]
