"""The goals of the desk's tasks: each tells from the simulator's state whether it is achieved, and what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from ..fixtures import Basin, Button, DeskState, Drawer, Knob, Mat
from ..objects import DeskObject
from .receptacles import Receptacle

OPEN_FRACTION = 0.85
"""A drawer counts as open above this opening, from 0 to 1."""

CLOSED_FRACTION = 0.10
"""A drawer counts as closed below this opening."""

FILLABLE_FRACTION = 0.75
"""An object can be placed in a drawer from this opening on."""


class Goal(Protocol):
    """A frozen dataclass whose fields are the objects and fixtures that it is about."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def target(self) -> str:
        """The body that is acted on."""
        ...

    def is_achieved(self, desk: DeskState) -> bool:
        """Tell whether the goal is achieved."""
        ...

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        """Return what to act on now [3], and where it has to go [3], in the arm's base frame in metres."""
        ...


@dataclass(frozen=True)
class PlaceGoal:
    """The object lies released in or on the receptacle; a closed drawer has to be opened for it."""

    target_object: DeskObject
    receptacle: Receptacle

    @property
    def target(self) -> str:
        return self.target_object.body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.receptacle.contains(desk, self.target) and desk.finger_contacts(self.target) == 0

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.receptacle, Drawer) and self.receptacle.opening(desk) < FILLABLE_FRACTION:
            return OpenDrawerGoal(self.receptacle).grounding_points(desk)
        return desk.position(self.target), self.receptacle.placement_point(desk)


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
    """The drawer is closed."""

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
    """The button was pressed in this episode."""

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
        return self.knob.lever_position(desk), self.knob.lever_position(desk, angle=self.knob.mark_angle)


@dataclass(frozen=True)
class PushGoal:
    """The object lies released on the mat."""

    target_object: DeskObject
    mat: Mat

    @property
    def target(self) -> str:
        return self.target_object.body

    def is_achieved(self, desk: DeskState) -> bool:
        return self.mat.contains(desk, self.target) and desk.finger_contacts(self.target) == 0

    def grounding_points(self, desk: DeskState) -> tuple[np.ndarray, np.ndarray]:
        return desk.position(self.target), self.mat.placement_point(desk)


@dataclass(frozen=True)
class PourGoal:
    """The ball from the cup lies in the basin, and the cup does not."""

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
    """Return the bodies of all objects, receptacles and fixtures that goals are about."""
    return {getattr(goal, field.name).body for goal in goals for field in fields(goal)}


def first_unachieved_goal(goals: Sequence[Goal], desk: DeskState) -> Goal:
    """Return the first goal that is not achieved; the last one if all are."""
    return next((goal for goal in goals if not goal.is_achieved(desk)), goals[-1])


def all_goals_achieved(goals: Sequence[Goal], desk: DeskState) -> bool:
    """Tell whether all goals are achieved, and no other object was placed in their receptacles."""
    place_goals = [goal for goal in goals if isinstance(goal, PlaceGoal)]
    return all(goal.is_achieved(desk) for goal in goals) and not any(
        goal.receptacle.contains(desk, body)
        for goal in place_goals
        for body in desk.present_bodies
        if all(body != other.target for other in place_goals if other.receptacle == goal.receptacle)
    )
