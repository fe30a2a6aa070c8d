"""What is to be achieved: each goal can tell from the simulator's state whether it is, and what it is about.

`target` names the body that is acted on. `grounding_points` gives two places in the arm's base frame, in metres: what has to be
acted on now, and where it has to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from .fixtures import Basin, Button, DeskState, Drawer, Knob, Mat
from .objects import DeskObject
from .receptacles import Receptacle

OPEN_FRACTION, CLOSED_FRACTION, FILLABLE_FRACTION = 0.85, 0.10, 0.75
"""Openings of a drawer, from 0 to 1: from where it is open, up to where it is shut, and what it takes to fill it."""


class Goal(Protocol):
    @property
    def target(self) -> str: ...

    def is_achieved(self, desk: DeskState) -> bool: ...

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class PlaceGoal:
    """The thing lies released in or on a place; a drawer that is shut has to be opened for it."""

    target_object: DeskObject
    receptacle: Receptacle

    @property
    def target(self) -> str:
        return self.target_object.body

    def is_achieved(self, desk: DeskState) -> bool:
        return (
            self.receptacle.contains(desk, self.target_object.body)
            and desk.finger_contacts(self.target_object.body) == 0
        )

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.receptacle, Drawer) and self.receptacle.opening(desk) < FILLABLE_FRACTION:
            return OpenDrawerGoal(self.receptacle).grounding_points(desk)
        return desk.position(self.target_object.body), self.receptacle.placement_point(desk)


@dataclass(frozen=True)
class OpenDrawerGoal:
    """The drawer is open."""

    drawer: Drawer

    @property
    def target(self) -> str:
        return self.drawer.moving_body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.drawer.opening(desk) > OPEN_FRACTION

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return self.drawer.handle_position(desk), self.drawer.handle_position(desk, opening=1.0)


@dataclass(frozen=True)
class CloseDrawerGoal:
    """The drawer is shut."""

    drawer: Drawer

    @property
    def target(self) -> str:
        return self.drawer.moving_body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.drawer.opening(desk) < CLOSED_FRACTION

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return self.drawer.handle_position(desk), self.drawer.handle_position(desk, opening=0.0)


@dataclass(frozen=True)
class PressButtonGoal:
    """The button was pressed; its cap shines from then on."""

    button: Button

    @property
    def target(self) -> str:
        return self.button.moving_body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.button.moving_body in desk.pressed_buttons

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return self.button.top(desk), self.button.top(desk)


@dataclass(frozen=True)
class TurnKnobGoal:
    """The knob's lever points to the green mark."""

    knob: Knob

    @property
    def target(self) -> str:
        return self.knob.moving_body

    def is_achieved(self, desk: DeskState) -> bool:
        return desk.joint_position(self.knob.joint_name) > self.knob.target_angle

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return self.knob.lever_position(desk), self.knob.lever_position(desk, angle=1.5)


@dataclass(frozen=True)
class PushGoal:
    """The thing lies on the mat, let go."""

    target_object: DeskObject
    mat: Mat

    @property
    def target(self) -> str:
        return self.target_object.body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.mat.contains(desk, self.target_object.body) and desk.finger_contacts(self.target_object.body) == 0

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return desk.position(self.target_object.body), self.mat.placement_point(desk)


@dataclass(frozen=True)
class PourGoal:
    """The ball that lay on the cup lies in the bowl, and the cup does not."""

    cup: DeskObject
    ball: DeskObject
    basin: Basin

    @property
    def target(self) -> str:
        return self.cup.body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.basin.contains(desk, self.ball.body) and not self.basin.contains(desk, self.cup.body)

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return desk.position(self.cup.body), self.basin.placement_point(desk)


def involved_bodies(goals: Sequence[Goal]) -> set[str]:
    """Return the bodies of all things, places and fixtures that goals are about."""
    parts = (getattr(goal, field.name) for goal in goals for field in fields(goal))
    return {moving_body.body for moving_body in parts}


def first_unachieved_goal(goals: Sequence[Goal], desk: DeskState) -> Goal:
    """Return the first goal that is still to be achieved; the last one when all are."""
    return next((goal for goal in goals if not goal.is_achieved(desk)), goals[-1])


def all_goals_achieved(goals: Sequence[Goal], desk: DeskState) -> bool:
    """Tell whether all goals are achieved, and nothing else was put where they put things."""
    put = [goal for goal in goals if isinstance(goal, PlaceGoal)]
    return all(goal.is_achieved(desk) for goal in goals) and not any(
        goal.receptacle.contains(desk, body)
        for goal in put
        for body in desk.present_bodies
        if all(body != other.target for other in put if other.receptacle == goal.receptacle)
    )
