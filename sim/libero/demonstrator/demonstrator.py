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
from .skills import Skill, start
from .truth import Truth

METRES, RADIANS = 0.05, 0.5
"""What an action of 1 asks of robosuite's OSC_POSE controller in one step, along and about an axis."""

SPEED_OF_ACTION = 0.306
"""The speed in m/s that a lasting action of 1 leads to: stiffness 150, critically damped."""

GAIN = 1.4
"""How much more than the remaining way is asked for: the controller makes only a part of a step in time."""


class Demonstrator:
    """Acts in one LIBERO environment; a new one is made after every reset.

    `noise` scales the disturbance: 0 gives the plain motion.
    """

    def __init__(self, env: Any, rng: np.random.Generator, *, noise: float = 1.0) -> None:
        self._rng = rng
        self._conventions = env.conventions
        self._truth = truth = Truth(env.simulation.environment)
        opening = truth.tool()[1][:, 1]
        home = float(np.arctan2(opening[1], opening[0]))
        steps = plan(truth.goals, drawers=truth.drawers())
        self._skills: list[Skill] = [start(truth, step, home) for step in steps]
        self._finished: set[int] = set()
        self._pace = rng.uniform(0.8, 1.0)
        self._disturbance = np.zeros(6)
        self._spread = noise * rng.choice([0.04, 0.10, 0.18]) * np.array([1.0, 1.0, 1.0, 0.15, 0.15, 0.15])

    def decide(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to record and the disturbed command to execute, both float32 [7] in the environment's
        conventions."""
        motion = self._current().act()
        position, rotation = self._truth.tool()
        way = (motion.position - position) * GAIN
        longest = motion.speed * self._pace / SPEED_OF_ACTION * METRES
        way *= min(1.0, longest / max(np.linalg.norm(way), 1e-9))
        turn = rotation_vector(motion.rotation @ rotation.T)
        turn *= min(1.0, 0.4 / max(np.linalg.norm(turn), 1e-9))
        action = np.clip(np.concatenate([way / METRES, turn / RADIANS, [motion.gripper]]), -1.0, 1.0)
        self._disturbance = 0.9 * self._disturbance + 0.45 * self._rng.normal(0.0, self._spread)
        # Where it goes slowly something is near or held: enough to vary, not to throw.
        calm = np.clip((motion.speed - 0.05) / 0.2, 0.05, 1.0)
        command = action.copy()
        command[:6] = np.clip(action[:6] + calm * self._disturbance, -1.0, 1.0)
        return self._conventions.action(action), self._conventions.action(command)

    def _current(self) -> Skill:
        """Return the first skill that is not finished, or whose work was undone."""
        for number, skill in enumerate(self._skills):
            if number in self._finished and skill.holds():
                continue
            if not skill.done():
                self._finished.discard(number)
                return skill
            self._finished.add(number)
        return self._skills[-1]
