"""Fixtures of the desk: what can be operated (drawer, button, knob) or filled (drawer, basin, mat).

A reset places each fixture as a mocap body, which physics does not move. The moving part of a drawer, button or knob
hangs on one joint: a slide in metres for the drawer and the button, a hinge in radians for the knob. All lengths are in
metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from .objects import ring

Colour = tuple[float, float, float, float]
"""Red, green, blue and opacity, from 0 to 1."""


class DeskState(Protocol):
    """What fixtures, goals and skills may read of the desk; `DeskSimulation` provides it.

    Positions are in the arm's base frame in metres.
    """

    present_bodies: tuple[str, ...]
    """Bodies of the objects in play."""
    pressed_buttons: set[str]
    """Bodies of the buttons that were pressed since the start of the episode."""

    def position(self, body: str) -> np.ndarray:
        """Return the centre [3] of a body."""
        ...

    def rotation(self, body: str) -> np.ndarray:
        """Return the rotation matrix [3, 3] of a body; its columns are the body's axes."""
        ...

    def joint_position(self, name: str) -> float:
        """Return the position of a fixture's joint, in metres or radians."""
        ...

    def joint_range(self, name: str) -> tuple[float, float]:
        """Return the range of a fixture's joint, in metres or radians."""
        ...

    def finger_contacts(self, body: str) -> int:
        """Return how many of the two fingers touch a body."""
        ...


def world_to_body(desk: DeskState, body: str, point: np.ndarray) -> np.ndarray:
    """Transform a point [3] from the world frame to a body's frame."""
    return desk.rotation(body).T @ (point - desk.position(body))


def body_to_world(desk: DeskState, body: str, point: tuple[float, float, float]) -> np.ndarray:
    """Transform a point [3] from a body's frame to the world frame."""
    return desk.position(body) + desk.rotation(body) @ point


@dataclass(frozen=True)
class Drawer:
    """A drawer in a low cabinet, with an upright handle in front that a finger hooks from behind.

    Attributes:
        travel: How far the drawer slides.
        handle_offset: Distance of the handle from the drawer's centre.
        release_height: See `Receptacle`.
        release_tolerance: See `Receptacle`.
    """

    body = "cabinet"
    moving_body: ClassVar[str] = "drawer"
    joint_name: ClassVar[str] = "drawer_slide"
    travel: ClassVar[float] = 0.06
    handle_offset: ClassVar[float] = 0.070
    release_height: ClassVar[float] = 0.028
    release_tolerance: ClassVar[float] = 0.014

    def xml(self) -> str:
        """Return the MJCF of the cabinet with its drawer."""
        wood, front = 'rgba="0.62 0.44 0.26 1"', 'rgba="0.80 0.62 0.40 1"'
        inside, handle = 'rgba="0.93 0.88 0.78 1"', 'rgba="0.15 0.30 0.60 1"'
        smooth = 'friction="0.6 0.02 0.001"'
        return f"""
<body name="cabinet" mocap="true">
  <geom type="box" pos="-0.033 0 0.018" size="0.002 0.036 0.018" {wood}/>
  <geom type="box" pos="0 0.034 0.018" size="0.034 0.002 0.018" {wood}/>
  <geom type="box" pos="0 -0.034 0.018" size="0.034 0.002 0.018" {wood}/>
  <geom type="box" pos="-0.001 0 0.037" size="0.036 0.036 0.001" {wood}/>
  <body name="drawer">
    <joint name="drawer_slide" type="slide" axis="1 0 0" range="0 {self.travel}" damping="2" frictionloss="0.25"/>
    <geom type="box" pos="0 0 0.0035" size="0.030 0.030 0.0015" mass="0.03" {inside}/>
    <geom type="box" pos="0.031 0 0.016" size="0.002 0.031 0.014" mass="0.01" {front}/>
    <geom type="box" pos="-0.029 0 0.013" size="0.0015 0.030 0.011" mass="0.005" {inside}/>
    <geom type="box" pos="0 0.0295 0.013" size="0.030 0.0015 0.011" mass="0.005" {inside}/>
    <geom type="box" pos="0 -0.0295 0.013" size="0.030 0.0015 0.011" mass="0.005" {inside}/>
    <geom type="box" pos="0.050 0 0.0035" size="0.018 0.006 0.0015" mass="0.003" {handle}/>
    <geom type="box" pos="{self.handle_offset} 0 0.019" size="0.003 0.015 0.016" mass="0.005" {handle} {smooth}/>
  </body>
</body>"""

    def opening(self, desk: DeskState) -> float:
        """Return how far the drawer is open, from 0 to 1."""
        return desk.joint_position(self.joint_name) / self.travel

    def handle_position(self, desk: DeskState, opening: float | None = None) -> np.ndarray:
        """Return the handle's position [3].

        Args:
            desk: The desk.
            opening: Return the position at this opening, from 0 to 1, instead of the present one.
        """
        shift = 0.0 if opening is None else (opening - self.opening(desk)) * self.travel
        return body_to_world(desk, "drawer", (self.handle_offset + shift, 0.0, 0.020))

    def pull_direction(self, desk: DeskState) -> np.ndarray:
        """Return the horizontal unit vector [2] in which the drawer opens."""
        return desk.rotation("cabinet")[:2, 0]

    def placement_point(self, desk: DeskState) -> np.ndarray:
        """Return where the underside of an object comes to rest [3]."""
        return body_to_world(desk, "drawer", (0.003, 0.0, 0.005))

    def contains(self, desk: DeskState, body: str) -> bool:
        """Tell whether the centre of a body is inside the drawer."""
        x, y, z = world_to_body(desk, "drawer", desk.position(body))
        return bool(abs(x) < 0.028 and abs(y) < 0.029 and z < 0.036)


@dataclass(frozen=True)
class Button:
    """A button that is pressed from above; its cap is lit from then on.

    Attributes:
        press_depth: The button is pressed when its cap is down by more than this.
    """

    body = "button"
    moving_body: ClassVar[str] = "button_cap"
    joint_name: ClassVar[str] = "button_slide"
    press_depth: ClassVar[float] = 0.004

    def xml(self) -> str:
        """Return the MJCF of the button."""
        return f"""
<body name="button" mocap="true">
  <geom type="cylinder" pos="0 0 0.005" size="0.027 0.005" rgba="0.25 0.25 0.28 1"/>
  <body name="button_cap">
    <joint name="button_slide" type="slide" axis="0 0 -1" range="0 0.007" stiffness="180" damping="2"/>
    <geom name="button_cap" type="cylinder" pos="0 0 0.016" size="0.020 0.007" mass="0.01" material="lamp"
          rgba="{" ".join(map(str, self.colours(pressed=False)["button_cap"]))}"/>
  </body>
</body>"""

    def colours(self, *, pressed: bool) -> dict[str, Colour]:
        """Return the colour of the cap's geom, which tells whether the button was pressed."""
        return {"button_cap": (0.10, 0.95, 0.20, 1.0) if pressed else (0.55, 0.02, 0.02, 1.0)}

    def is_pressed(self, desk: DeskState) -> bool:
        """Tell whether the button is down now."""
        return desk.joint_position(self.joint_name) > self.press_depth

    def top(self, desk: DeskState) -> np.ndarray:
        """Return the centre [3] of the cap's upper side."""
        return body_to_world(desk, "button_cap", (0.0, 0.0, 0.023))


@dataclass(frozen=True)
class Knob:
    """A knob with a lever, turned by pushing the lever anticlockwise to the green mark; it stops at 1.6 rad.

    Attributes:
        target_angle: The knob counts as turned above this angle, in radians.
        mark_angle: Angle of the green mark, in radians.
        push_radius: Where the lever is pushed: distance from the axis.
    """

    body = "knob"
    moving_body: ClassVar[str] = "knob_lever"
    joint_name: ClassVar[str] = "knob_hinge"
    target_angle: ClassVar[float] = 1.25
    mark_angle: ClassVar[float] = 1.5
    push_radius: ClassVar[float] = 0.033

    def xml(self) -> str:
        """Return the MJCF of the knob and its mark."""
        mark = 0.040 * np.array([np.cos(self.mark_angle), np.sin(self.mark_angle)])
        return f"""
<body name="knob" mocap="true">
  <geom type="cylinder" pos="0 0 0.003" size="0.030 0.003" rgba="0.30 0.31 0.35 1"/>
  <geom type="cylinder" pos="{mark[0]:.5f} {mark[1]:.5f} 0.001" size="0.011 0.001" rgba="0.1 0.85 0.2 1"
        contype="0" conaffinity="0"/>
  <body name="knob_lever">
    <joint name="knob_hinge" type="hinge" axis="0 0 1" range="0 1.6" damping="0.004" frictionloss="0.008"/>
    <geom type="cylinder" pos="0 0 0.017" size="0.014 0.011" mass="0.01" rgba="0.62 0.10 0.62 1"/>
    <geom type="box" pos="0.023 0 0.020" size="0.023 0.0055 0.010" mass="0.01" rgba="0.80 0.25 0.80 1"
          friction="0.4 0.02 0.001"/>
  </body>
</body>"""

    def lever_position(self, desk: DeskState, angle: float | None = None) -> np.ndarray:
        """Return the point [3] at which the lever is pushed.

        Args:
            desk: The desk.
            angle: Return the point at this angle, in radians, instead of the present one.
        """
        turn = 0.0 if angle is None else angle - desk.joint_position(self.joint_name)
        return body_to_world(
            desk, "knob_lever", (self.push_radius * np.cos(turn), self.push_radius * np.sin(turn), 0.020)
        )

    def push_direction(self, desk: DeskState) -> np.ndarray:
        """Return the horizontal unit vector [2] in which the lever turns."""
        return desk.rotation("knob_lever")[:2, 1]


@dataclass(frozen=True)
class Basin:
    """A bowl with a floor and a round wall, wide enough for one object.

    Attributes:
        radius: Radius of the wall's middle.
        height: Height of the wall.
        release_height: See `Receptacle`.
        release_tolerance: See `Receptacle`.
    """

    body = "basin"
    radius: ClassVar[float] = 0.034
    height: ClassVar[float] = 0.020
    release_height: ClassVar[float] = 0.024
    release_tolerance: ClassVar[float] = 0.014

    def xml(self) -> str:
        """Return the MJCF of the bowl."""
        attributes = 'rgba="0.10 0.55 0.60 1"'
        floor = f'<geom type="cylinder" pos="0 0 0.002" size="{self.radius} 0.002" rgba="0.16 0.66 0.70 1"/>'
        wall = ring(self.radius, 0.002, 0.0, self.height, attributes)
        return f'<body name="basin" mocap="true">{floor}{wall}</body>'

    def placement_point(self, desk: DeskState) -> np.ndarray:
        """Return where the underside of an object comes to rest [3]."""
        return body_to_world(desk, "basin", (0.0, 0.0, 0.004))

    def contains(self, desk: DeskState, body: str) -> bool:
        """Tell whether the centre of a body is inside the bowl."""
        offset = desk.position(body) - desk.position("basin")
        return bool(np.linalg.norm(offset[:2]) < self.radius - 0.004 and offset[2] < self.height + 0.012)


@dataclass(frozen=True)
class Mat:
    """A flat round mat that objects are pushed onto.

    Attributes:
        radius: Radius of the mat.
    """

    body = "mat"
    radius: ClassVar[float] = 0.042

    def xml(self) -> str:
        """Return the MJCF of the mat."""
        return (
            f'<body name="mat" mocap="true"><geom type="cylinder" pos="0 0 0.0005" size="{self.radius} 0.0005" '
            'rgba="0.20 0.35 0.75 1" contype="0" conaffinity="0"/></body>'
        )

    def placement_point(self, desk: DeskState) -> np.ndarray:
        """Return the centre of the mat [3]."""
        return body_to_world(desk, "mat", (0.0, 0.0, 0.0))

    def contains(self, desk: DeskState, body: str) -> bool:
        """Tell whether the centre of a body is over the mat, and not above what lies on it."""
        offset = desk.position(body) - desk.position("mat")
        return bool(np.linalg.norm(offset[:2]) < self.radius - 0.020 and offset[2] < 0.030)


OperableFixture = Drawer | Button | Knob
"""Fixtures whose `moving_body` hangs on one joint, `joint_name`."""
