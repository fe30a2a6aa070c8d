"""Progress of an episode on the desk: which goals were achieved, and which object was handled first."""

from __future__ import annotations

import numpy as np

from .fixtures import DeskState, OperableFixture
from .tasks.goals import Goal, all_goals_achieved, first_unachieved_goal
from .tasks.task import Task

PICKED_HEIGHT = 0.03
"""An object counts as picked from this height above its start, in metres."""

PICKED_SHIFT = 0.05
"""In kitchens, an object also counts as picked if it was pushed this far along the desk, in metres."""

OPERATED_FRACTION = 0.3
"""In kitchens, a fixture counts as picked if its joint moved by this fraction of its range."""


class EpisodeProgress:
    """What an episode has achieved so far, counted from the state in which it is made.

    Args:
        task: The task.
        desk: The desk at the start of the episode.

    Attributes:
        steps: Number of control steps.
        picked: Body of the object or fixture that was handled first; None so far.
    """

    def __init__(self, task: Task, desk: DeskState) -> None:
        self.steps = 0
        self.picked: str | None = None
        self._task = task
        self._achieved_order: list[int] = []
        operable = [fixture for fixture in task.arrangement.fixtures if isinstance(fixture, OperableFixture)]
        self._start_positions = {body: desk.position(body) for body in desk.present_bodies}
        self._start_joint_positions = {fixture: desk.joint_position(fixture.joint_name) for fixture in operable}

    def update(self, desk: DeskState) -> None:
        """Count a control step, and record what was handled and achieved by its end."""
        self.steps += 1
        if self.picked is None:
            self.picked = self._first_handled_body(desk)
        for number, goal in enumerate(self._task.goals):
            if number not in self._achieved_order and goal.is_achieved(desk):
                self._achieved_order.append(number)

    def current_goal(self, desk: DeskState) -> Goal:
        """Return the first of the task's goals that is not achieved; the last one if all are."""
        return first_unachieved_goal(self._task.goals, desk)

    def success(self, desk: DeskState) -> bool:
        """Tell whether all goals are achieved, in order if the task asks for it, and nothing else was placed there."""
        in_order = not self._task.in_order or self._achieved_order == sorted(self._achieved_order)
        return in_order and all_goals_achieved(self._task.goals, desk)

    def _first_handled_body(self, desk: DeskState) -> str | None:
        """Return the first body that was picked, pushed or operated since the start."""
        for body, start in self._start_positions.items():
            x, y, z = desk.position(body) - start
            if z > PICKED_HEIGHT or (self._start_joint_positions and np.hypot(x, y) > PICKED_SHIFT):
                return body
        for fixture, start in self._start_joint_positions.items():
            low, high = desk.joint_range(fixture.joint_name)
            if abs(desk.joint_position(fixture.joint_name) - start) > OPERATED_FRACTION * (high - low):
                return fixture.moving_body
        return None
