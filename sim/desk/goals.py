"""What is to be achieved: each goal can tell from the simulator's state whether it is, and what it is about.

`target` names the body that is acted on. `points` gives two places in the arm's base frame, in metres: what has to be
acted on now, and where it has to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from .fixtures import Basin, Button, Desk, Drawer, Knob, Mat
from .objects import DeskObject
from .places import Place

OPEN, SHUT, ROOMY = 0.85, 0.10, 0.75
"""Openings of a drawer, from 0 to 1: from where it is open, up to where it is shut, and what it takes to fill it."""


class Goal(Protocol):
    @property
    def target(self) -> str: ...

    def done(self, desk: Desk) -> bool: ...

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Put:
    """The thing lies released in or on a place; a drawer that is shut has to be opened for it."""

    thing: DeskObject
    place: Place

    @property
    def target(self) -> str:
        return self.thing.body

    def done(self, desk: Desk) -> bool:
        return self.place.holds(desk, self.thing.body) and desk.finger_contacts(self.thing.body) == 0

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.place, Drawer) and self.place.opening(desk) < ROOMY:
            return Opened(self.place).points(desk)
        return desk.position(self.thing.body), self.place.middle(desk)


@dataclass(frozen=True)
class Opened:
    """The drawer is open."""

    drawer: Drawer

    @property
    def target(self) -> str:
        return self.drawer.part

    def done(self, desk: Desk) -> bool:
        return self.drawer.opening(desk) > OPEN

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return self.drawer.handle_at(desk), self.drawer.handle_at(desk, opening=1.0)


@dataclass(frozen=True)
class Shut:
    """The drawer is shut."""

    drawer: Drawer

    @property
    def target(self) -> str:
        return self.drawer.part

    def done(self, desk: Desk) -> bool:
        return self.drawer.opening(desk) < SHUT

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return self.drawer.handle_at(desk), self.drawer.handle_at(desk, opening=0.0)


@dataclass(frozen=True)
class Pressed:
    """The button was pressed; its cap shines from then on."""

    button: Button

    @property
    def target(self) -> str:
        return self.button.part

    def done(self, desk: Desk) -> bool:
        return self.button.part in desk.latched

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return self.button.top(desk), self.button.top(desk)


@dataclass(frozen=True)
class Turned:
    """The knob's lever points to the green mark."""

    knob: Knob

    @property
    def target(self) -> str:
        return self.knob.part

    def done(self, desk: Desk) -> bool:
        return desk.joint(self.knob.joint) > self.knob.turned

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return self.knob.lever_at(desk), self.knob.lever_at(desk, angle=1.5)


@dataclass(frozen=True)
class Pushed:
    """The thing lies on the mat, let go."""

    thing: DeskObject
    mat: Mat

    @property
    def target(self) -> str:
        return self.thing.body

    def done(self, desk: Desk) -> bool:
        return self.mat.holds(desk, self.thing.body) and desk.finger_contacts(self.thing.body) == 0

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return desk.position(self.thing.body), self.mat.middle(desk)


@dataclass(frozen=True)
class Poured:
    """The ball that lay on the cup lies in the bowl, and the cup does not."""

    cup: DeskObject
    ball: DeskObject
    basin: Basin

    @property
    def target(self) -> str:
        return self.cup.body

    def done(self, desk: Desk) -> bool:
        return self.basin.holds(desk, self.ball.body) and not self.basin.holds(desk, self.cup.body)

    def points(self, desk: Desk) -> tuple[np.ndarray, np.ndarray]:
        return desk.position(self.cup.body), self.basin.middle(desk)


def needed(goals: Sequence[Goal]) -> set[str]:
    """Return the bodies of all things, places and fixtures that goals are about."""
    parts = (getattr(goal, field.name) for goal in goals for field in fields(goal))
    return {part.body for part in parts}


def current(goals: Sequence[Goal], desk: Desk) -> Goal:
    """Return the first goal that is still to be achieved; the last one when all are."""
    return next((goal for goal in goals if not goal.done(desk)), goals[-1])


def achieved(goals: Sequence[Goal], desk: Desk) -> bool:
    """Tell whether all goals are achieved, and nothing else was put where they put things."""
    put = [goal for goal in goals if isinstance(goal, Put)]
    return all(goal.done(desk) for goal in goals) and not any(
        goal.place.holds(desk, body)
        for goal in put
        for body in desk.in_play
        if all(body != other.target for other in put if other.place == goal.place)
    )
