"""The arrangement of the goal suites: a drawer or the bin, a button and a knob around the arm, things between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .arm import PAN_AXIS_POSITION
from .arrangement import SPACING, Pose, is_pickable, standing_pose
from .fixtures import Basin, Button, Drawer, Knob, Mat
from .objects import DeskObject, LandmarkObject

CentralFixture = Basin | Mat | LandmarkObject
"""What lies among the things: the bowl, the mat, or the plate."""

OBJECT_SECTOR, OBJECT_RADII, NEAR_OBJECT_RADII = (-50.0, 8.0), (0.130, 0.222), (0.135, 0.170)
"""Where things start, seen from the arm's first joint: angles in degrees from straight ahead, distances in metres."""

CENTRAL_FIXTURE_SECTOR, CENTRAL_FIXTURE_RADII, CENTRAL_FIXTURE_SPACING = (-42.0, 4.0), (0.150, 0.195), 0.086
KNOB_SPACING, HANDLE_SPACING = 0.080, 0.062
"""Least distance of a thing's centre from the dish, the knob, and wherever the drawer's handle may come."""

TRIES = 40
"""How often a place is drawn for one thing before all are drawn anew."""

KeepOutZone = tuple[np.ndarray, float]
"""A position [2], and how far from it others have to stay."""


def polar_to_position(angle: float, radius: float) -> np.ndarray:
    """Return the position [2] at an angle in degrees from straight ahead, counted to the front camera's right."""
    return PAN_AXIS_POSITION + radius * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])


@dataclass(frozen=True)
class KitchenArrangement:
    """Fixtures that stand a little differently at every start, a dish, and things between.

    The drawer starts open, shut or, without a say, either way; without a drawer the bin stands in its place. Things
    that are `near_objects` stand where the hand comes straight down; `ball` lies on the first thing. `central_fixture_radii` says how far
    the dish stands from the arm's first joint, in metres.
    """

    upright_objects: tuple[DeskObject, ...]
    central_fixture: CentralFixture
    drawer: Drawer | None
    starts_open: bool | None = None
    near_objects: tuple[DeskObject, ...] = ()
    ball: DeskObject | None = None
    central_fixture_radii: tuple[float, float] = CENTRAL_FIXTURE_RADII

    @property
    def objects(self) -> tuple[DeskObject, ...]:
        return (*self.upright_objects, *((self.ball,) if self.ball else ()))

    @property
    def fixtures(self) -> tuple[Drawer | Button | Knob | CentralFixture, ...]:
        return (*((self.drawer,) if self.drawer else ()), Button(), Knob(), self.central_fixture)

    @property
    def has_bin(self) -> bool:
        return self.drawer is None

    def is_valid(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether, with bodies at these positions [2], things stand clear of each other, dish and knob."""
        landmarks = [(positions[self.central_fixture.body], CENTRAL_FIXTURE_SPACING), (positions["knob"], KNOB_SPACING)]
        object_positions = [positions[thing.body] for thing in self.upright_objects]
        for object_position in object_positions:
            if not _is_clear(object_position, landmarks):
                return False
            landmarks.append((object_position, SPACING))
        return True

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Return the pose of every body in play and, under the name of a fixture's joint, its position alone."""
        while True:
            poses, handles = self._sample_drawer(rng) if self.drawer else ({}, ())
            poses["button"] = (*polar_to_position(rng.uniform(98, 106), rng.uniform(0.165, 0.185)), 0.0, 0.0)
            knob = polar_to_position(rng.uniform(-84, -76), rng.uniform(0.165, 0.180))
            poses["knob"] = (*knob, 0.0, np.deg2rad(rng.uniform(-35, 5)))
            poses["knob_hinge"] = (rng.uniform(0.0, 0.1),)
            landmarks = [(knob, KNOB_SPACING), *((handle_offset, HANDLE_SPACING) for handle_offset in handles)]
            central_fixture = _sample_position(rng, CENTRAL_FIXTURE_SECTOR, self.central_fixture_radii, landmarks)
            object_positions = (
                self._sample_object_positions(rng, [*landmarks, (central_fixture, CENTRAL_FIXTURE_SPACING)])
                if central_fixture is not None
                else None
            )
            if object_positions is not None:
                return poses | self._object_poses(object_positions, central_fixture, rng)

    def _sample_object_positions(
        self, rng: np.random.Generator, landmarks: list[KeepOutZone]
    ) -> list[np.ndarray] | None:
        """Draw where the things stand, one after the other; None when there is no room for one."""
        object_positions: list[np.ndarray] = []
        for thing in self.upright_objects:
            others = [(object_position, SPACING) for object_position in object_positions]
            object_position = _sample_position(
                rng,
                OBJECT_SECTOR,
                NEAR_OBJECT_RADII if thing in self.near_objects else OBJECT_RADII,
                [*landmarks, *others],
            )
            if object_position is None:
                return None
            object_positions.append(object_position)
        return object_positions

    def _sample_drawer(self, rng: np.random.Generator) -> tuple[dict[str, Pose], tuple[np.ndarray, ...]]:
        """Draw where the cabinet stands and how far it is open; return where its handle may come, too."""
        angle = rng.uniform(36, 44)
        # Halfway, the handle moves along the tangent around the arm, as the closed fingers do that hook it.
        halfway = polar_to_position(angle, rng.uniform(0.183, 0.195))
        yaw = np.deg2rad(angle - 90 + rng.uniform(-4, 4))
        outward = np.array([np.cos(yaw), np.sin(yaw)])
        cabinet = halfway - (self.drawer.handle_offset + self.drawer.travel / 2) * outward
        starts_open = bool(rng.integers(2)) if self.starts_open is None else self.starts_open
        opening = rng.uniform(0.92, 1.0) if starts_open else rng.uniform(0.0, 0.05)
        poses = {"cabinet": (*cabinet, 0.0, yaw), "drawer_slide": (opening * self.drawer.travel,)}
        return poses, tuple(halfway + shift * outward for shift in (0.0, 0.03, 0.06))

    def _object_poses(
        self, object_positions: list[np.ndarray], central_fixture: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Pose]:
        poses: dict[str, Pose] = {self.central_fixture.body: (*central_fixture, 0.0, 0.0)}
        for thing, object_position in zip(self.upright_objects, object_positions, strict=True):
            poses[thing.body] = standing_pose(thing, object_position, rng)
        if self.ball:
            x, y, z, _ = poses[self.upright_objects[0].body]
            poses[self.ball.body] = (x, y, z + self.upright_objects[0].rest_height + self.ball.rest_height, 0.0)
        return poses


def _sample_position(
    rng: np.random.Generator,
    sector: tuple[float, float],
    radii: tuple[float, float],
    landmarks: Sequence[KeepOutZone],
) -> np.ndarray | None:
    """Return a place that is clear of all landmarks, None when there seems to be none."""
    for _ in range(TRIES):
        object_position = polar_to_position(rng.uniform(*sector), rng.uniform(*radii))
        if _is_clear(object_position, landmarks):
            return object_position
    return None


def _is_clear(object_position: np.ndarray, landmarks: Sequence[KeepOutZone]) -> bool:
    return is_pickable(object_position) and all(np.hypot(*(object_position - at)) >= least for at, least in landmarks)
