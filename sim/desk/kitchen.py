"""The arrangement of the goal suites: a drawer or the bin, a button and a knob around the arm, things between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .arm import PAN
from .arrangement import SPACING, Pose, pickable, stand
from .fixtures import Basin, Button, Drawer, Knob, Mat
from .objects import DeskObject, Fixture

Dish = Basin | Mat | Fixture
"""What lies among the things: the bowl, the mat, or the plate."""

SECTOR, RADII, NEAR_RADII = (-50.0, 8.0), (0.130, 0.222), (0.135, 0.170)
"""Where things start, seen from the arm's first joint: angles in degrees from straight ahead, distances in metres."""

DISH_SECTOR, DISH_RADII, DISH_SPACING = (-42.0, 4.0), (0.150, 0.195), 0.086
KNOB_SPACING, HANDLE_SPACING = 0.080, 0.062
"""Least distance of a thing's centre from the dish, the knob, and wherever the drawer's handle may come."""

TRIES = 40
"""How often a place is drawn for one thing before all are drawn anew."""

Landmark = tuple[np.ndarray, float]
"""A position [2], and how far from it others have to stay."""


def polar(angle: float, radius: float) -> np.ndarray:
    """Return the position [2] at an angle in degrees from straight ahead, counted to the front camera's right."""
    return PAN + radius * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])


@dataclass(frozen=True)
class Kitchen:
    """Fixtures that stand a little differently at every start, a dish, and things between.

    The drawer starts open, shut or, without a say, either way; without a drawer the bin stands in its place. Things
    that are `near` stand where the hand comes straight down; `ball` lies on the first thing. `dish_radii` says how far
    the dish stands from the arm's first joint, in metres.
    """

    things_standing: tuple[DeskObject, ...]
    dish: Dish
    drawer: Drawer | None
    starts_open: bool | None = None
    near: tuple[DeskObject, ...] = ()
    ball: DeskObject | None = None
    dish_radii: tuple[float, float] = DISH_RADII

    @property
    def things(self) -> tuple[DeskObject, ...]:
        return (*self.things_standing, *((self.ball,) if self.ball else ()))

    @property
    def fixtures(self) -> tuple[Drawer | Button | Knob | Dish, ...]:
        return (*((self.drawer,) if self.drawer else ()), Button(), Knob(), self.dish)

    @property
    def has_bin(self) -> bool:
        return self.drawer is None

    def holds(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether, with bodies at these positions [2], things stand clear of each other, dish and knob."""
        landmarks = [(positions[self.dish.body], DISH_SPACING), (positions["knob"], KNOB_SPACING)]
        spots = [positions[thing.body] for thing in self.things_standing]
        for spot in spots:
            if not _clear(spot, landmarks):
                return False
            landmarks.append((spot, SPACING))
        return True

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Return the pose of every body in play and, under the name of a fixture's joint, its position alone."""
        while True:
            poses, handles = self._place_drawer(rng) if self.drawer else ({}, ())
            poses["button"] = (*polar(rng.uniform(98, 106), rng.uniform(0.165, 0.185)), 0.0, 0.0)
            knob = polar(rng.uniform(-84, -76), rng.uniform(0.165, 0.180))
            poses["knob"] = (*knob, 0.0, np.deg2rad(rng.uniform(-35, 5)))
            poses["knob_hinge"] = (rng.uniform(0.0, 0.1),)
            landmarks = [(knob, KNOB_SPACING), *((handle, HANDLE_SPACING) for handle in handles)]
            dish = _draw(rng, DISH_SECTOR, self.dish_radii, landmarks)
            spots = self._draw_spots(rng, [*landmarks, (dish, DISH_SPACING)]) if dish is not None else None
            if spots is not None:
                return poses | self._stand(spots, dish, rng)

    def _draw_spots(self, rng: np.random.Generator, landmarks: list[Landmark]) -> list[np.ndarray] | None:
        """Draw where the things stand, one after the other; None when there is no room for one."""
        spots: list[np.ndarray] = []
        for thing in self.things_standing:
            others = [(spot, SPACING) for spot in spots]
            spot = _draw(rng, SECTOR, NEAR_RADII if thing in self.near else RADII, [*landmarks, *others])
            if spot is None:
                return None
            spots.append(spot)
        return spots

    def _place_drawer(self, rng: np.random.Generator) -> tuple[dict[str, Pose], tuple[np.ndarray, ...]]:
        """Draw where the cabinet stands and how far it is open; return where its handle may come, too."""
        angle = rng.uniform(36, 44)
        # Halfway, the handle moves along the tangent around the arm, as the closed fingers do that hook it.
        halfway = polar(angle, rng.uniform(0.183, 0.195))
        yaw = np.deg2rad(angle - 90 + rng.uniform(-4, 4))
        outward = np.array([np.cos(yaw), np.sin(yaw)])
        cabinet = halfway - (self.drawer.handle + self.drawer.travel / 2) * outward
        starts_open = bool(rng.integers(2)) if self.starts_open is None else self.starts_open
        opening = rng.uniform(0.92, 1.0) if starts_open else rng.uniform(0.0, 0.05)
        poses = {"cabinet": (*cabinet, 0.0, yaw), "drawer_slide": (opening * self.drawer.travel,)}
        return poses, tuple(halfway + shift * outward for shift in (0.0, 0.03, 0.06))

    def _stand(self, spots: list[np.ndarray], dish: np.ndarray, rng: np.random.Generator) -> dict[str, Pose]:
        poses: dict[str, Pose] = {self.dish.body: (*dish, 0.0, 0.0)}
        for thing, spot in zip(self.things_standing, spots, strict=True):
            poses[thing.body] = stand(thing, spot, rng)
        if self.ball:
            x, y, z, _ = poses[self.things_standing[0].body]
            poses[self.ball.body] = (x, y, z + self.things_standing[0].rest_height + self.ball.rest_height, 0.0)
        return poses


def _draw(
    rng: np.random.Generator,
    sector: tuple[float, float],
    radii: tuple[float, float],
    landmarks: Sequence[Landmark],
) -> np.ndarray | None:
    """Return a place that is clear of all landmarks, None when there seems to be none."""
    for _ in range(TRIES):
        spot = polar(rng.uniform(*sector), rng.uniform(*radii))
        if _clear(spot, landmarks):
            return spot
    return None


def _clear(spot: np.ndarray, landmarks: Sequence[Landmark]) -> bool:
    return pickable(spot) and all(np.hypot(*(spot - at)) >= least for at, least in landmarks)
