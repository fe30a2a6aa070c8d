"""The arrangement of the goal suites: a drawer or the bin, a button and a knob around the arm, objects in between.

Fixtures and objects are drawn in polar coordinates around the arm's pan axis: angles in degrees from straight ahead,
counted to the front camera's right, and radii in metres. All numbers here decide initial states: a change makes results
incomparable with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arm import PAN_AXIS_POSITION
from ..fixtures import Basin, Button, Drawer, Knob, Mat
from ..objects import DeskObject, LandmarkObject
from .arrangement import SPACING, Pose, is_pickable, standing_pose

CentralFixture = Basin | Mat | LandmarkObject
"""What lies among the objects: the basin, the mat, or the plate."""

KeepOutZone = tuple[np.ndarray, float]
"""A position [2], and the least distance of others from it."""

OBJECT_SECTOR = (-50.0, 8.0)
OBJECT_RADII = (0.130, 0.222)
NEAR_OBJECT_RADII = (0.135, 0.170)
"""Angles and radii at which objects start."""

CENTRAL_FIXTURE_SECTOR = (-42.0, 4.0)
CENTRAL_FIXTURE_RADII = (0.150, 0.195)
"""Angles and radii at which the central fixture is placed."""

BUTTON_SECTOR, BUTTON_RADII = (98, 106), (0.165, 0.185)
KNOB_SECTOR, KNOB_RADII = (-84, -76), (0.165, 0.180)
KNOB_YAW_RANGE = (-35, 5)
"""Range of the knob's yaw, in degrees."""
KNOB_START_RANGE = (0.0, 0.1)
"""Range of the lever's angle at the start, in radians."""

DRAWER_SECTOR, DRAWER_RADII = (36, 44), (0.183, 0.195)
"""Angles and radii at which the handle of the half open drawer is placed."""
DRAWER_YAW_NOISE = 4
"""Half range of the cabinet's yaw around the tangential direction, in degrees."""
OPEN_START_RANGE, CLOSED_START_RANGE = (0.92, 1.0), (0.0, 0.05)
"""Ranges of the drawer's opening at the start, from 0 to 1."""

HANDLE_SHIFTS = (0.0, 0.03, 0.06)
"""Shifts from the handle of the half open drawer, in metres, around which objects keep clear."""

CENTRAL_FIXTURE_SPACING, KNOB_SPACING, HANDLE_SPACING = 0.086, 0.080, 0.062
"""Least distance of an object's centre from the central fixture, the knob and the drawer's handle, in metres."""

TRIES = 40
"""How often a position is drawn for one object before all are drawn again."""


def polar_to_position(angle: float, radius: float) -> np.ndarray:
    """Return the position [2] at an angle in degrees and a radius in metres around the arm's pan axis."""
    return PAN_AXIS_POSITION + radius * np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])


@dataclass(frozen=True)
class KitchenArrangement:
    """Fixtures whose positions vary a little, with a central fixture and objects between them.

    Attributes:
        upright_objects: Objects that stand on the desk.
        central_fixture: The basin, the mat or the plate.
        drawer: The drawer; None puts the bin in its place.
        starts_open: Whether the drawer starts open; None draws it.
        near_objects: Upright objects that stand close enough for a hand that comes straight down.
        ball: Object on top of the first upright one, if any.
        central_fixture_radii: Range of the central fixture's distance from the pan axis, in metres.
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
        """All objects."""
        return (*self.upright_objects, *((self.ball,) if self.ball else ()))

    @property
    def fixtures(self) -> tuple[Drawer | Button | Knob | CentralFixture, ...]:
        """All fixtures."""
        return (*((self.drawer,) if self.drawer else ()), Button(), Knob(), self.central_fixture)

    @property
    def has_bin(self) -> bool:
        """Whether the scene has the bin."""
        return self.drawer is None

    def is_valid(self, positions: Mapping[str, np.ndarray]) -> bool:
        """Tell whether upright objects are clear of each other, of the central fixture and of the knob.

        Args:
            positions: Position [2] of each body.
        """
        zones = [(positions[self.central_fixture.body], CENTRAL_FIXTURE_SPACING), (positions["knob"], KNOB_SPACING)]
        object_positions = [positions[each.body] for each in self.upright_objects]
        for object_position in object_positions:
            if not _is_clear(object_position, zones):
                return False
            zones.append((object_position, SPACING))
        return True

    def sample(self, rng: np.random.Generator) -> dict[str, Pose]:
        """Draw an initial state.

        Returns:
            The pose of every body in play and, under the name of a fixture's joint, its position alone.
        """
        while True:
            poses, handle_positions = (
                _sample_drawer(self.drawer, rng, starts_open=self.starts_open) if self.drawer else ({}, ())
            )
            button = polar_to_position(rng.uniform(*BUTTON_SECTOR), rng.uniform(*BUTTON_RADII))
            poses["button"] = (*button, 0.0, 0.0)
            knob = polar_to_position(rng.uniform(*KNOB_SECTOR), rng.uniform(*KNOB_RADII))
            poses["knob"] = (*knob, 0.0, np.deg2rad(rng.uniform(*KNOB_YAW_RANGE)))
            poses["knob_hinge"] = (rng.uniform(*KNOB_START_RANGE),)
            zones = [(knob, KNOB_SPACING), *((handle, HANDLE_SPACING) for handle in handle_positions)]
            central_fixture = _sample_position(rng, CENTRAL_FIXTURE_SECTOR, self.central_fixture_radii, zones)
            if central_fixture is None:
                continue
            zones.append((central_fixture, CENTRAL_FIXTURE_SPACING))
            object_positions = self._sample_object_positions(rng, zones)
            if object_positions is not None:
                return poses | self._object_poses(object_positions, central_fixture, rng)

    def _sample_object_positions(
        self, rng: np.random.Generator, zones: Sequence[KeepOutZone]
    ) -> list[np.ndarray] | None:
        """Draw the position [2] of each upright object, one after the other; None if there is no room for one."""
        object_positions: list[np.ndarray] = []
        for each in self.upright_objects:
            others = [(object_position, SPACING) for object_position in object_positions]
            radii = NEAR_OBJECT_RADII if each in self.near_objects else OBJECT_RADII
            object_position = _sample_position(rng, OBJECT_SECTOR, radii, [*zones, *others])
            if object_position is None:
                return None
            object_positions.append(object_position)
        return object_positions

    def _object_poses(
        self, object_positions: Sequence[np.ndarray], central_fixture: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Pose]:
        poses: dict[str, Pose] = {self.central_fixture.body: (*central_fixture, 0.0, 0.0)}
        for each, object_position in zip(self.upright_objects, object_positions, strict=True):
            poses[each.body] = standing_pose(each, object_position, rng)
        if self.ball:
            support = self.upright_objects[0]
            x, y, z, _ = poses[support.body]
            poses[self.ball.body] = (x, y, z + support.rest_height + self.ball.rest_height, 0.0)
        return poses


def _sample_drawer(
    drawer: Drawer, rng: np.random.Generator, *, starts_open: bool | None
) -> tuple[dict[str, Pose], tuple[np.ndarray, ...]]:
    """Draw the cabinet's pose and the drawer's opening; return also the positions [2] that the handle needs clear."""
    angle = rng.uniform(*DRAWER_SECTOR)
    # At half the opening, the handle moves tangentially around the arm, as do the closed fingers that hook it.
    half_open = polar_to_position(angle, rng.uniform(*DRAWER_RADII))
    yaw = np.deg2rad(angle - 90 + rng.uniform(-DRAWER_YAW_NOISE, DRAWER_YAW_NOISE))
    outward = np.array([np.cos(yaw), np.sin(yaw)])
    cabinet = half_open - (drawer.handle_offset + drawer.travel / 2) * outward
    if starts_open is None:
        starts_open = bool(rng.integers(2))
    opening = rng.uniform(*(OPEN_START_RANGE if starts_open else CLOSED_START_RANGE))
    poses: dict[str, Pose] = {"cabinet": (*cabinet, 0.0, yaw), "drawer_slide": (opening * drawer.travel,)}
    return poses, tuple(half_open + shift * outward for shift in HANDLE_SHIFTS)


def _sample_position(
    rng: np.random.Generator, sector: tuple[float, float], radii: tuple[float, float], zones: Sequence[KeepOutZone]
) -> np.ndarray | None:
    """Draw a position [2] that is clear of all zones; None if none was found."""
    for _ in range(TRIES):
        position = polar_to_position(rng.uniform(*sector), rng.uniform(*radii))
        if _is_clear(position, zones):
            return position
    return None


def _is_clear(position: np.ndarray, zones: Sequence[KeepOutZone]) -> bool:
    return is_pickable(position) and all(np.hypot(*(position - centre)) >= least for centre, least in zones)
