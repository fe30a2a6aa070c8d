"""What stands on the desk and can be operated or filled: a drawer, a button, a knob, a basin, a mat.

Each stands where a reset puts it (a body that physics does not move); its moving part hangs on one joint. A joint's
position is metres for the drawer and the button, radians for the knob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .objects import ring

Colour = tuple[float, float, float, float]


class DeskState(Protocol):
    """What a fixture, a goal and a skill may ask of the world; `DeskEnv` answers."""

    present_bodies: tuple[str, ...]
    pressed_buttons: set[str]
    """Bodies of the buttons that were pressed since the start."""

    def position(self, body: str) -> np.ndarray: ...

    def rotation(self, body: str) -> np.ndarray: ...

    def joint_position(self, name: str) -> float: ...

    def finger_contacts(self, body: str) -> int: ...


def world_to_body(desk: DeskState, body: str, point: np.ndarray) -> np.ndarray:
    """Return a point [3] of the world in a body's own frame."""
    return desk.rotation(body).T @ (point - desk.position(body))


def body_to_world(desk: DeskState, body: str, point: tuple[float, float, float]) -> np.ndarray:
    """Return a point of a body's own frame in the world [3]."""
    return desk.position(body) + desk.rotation(body) @ point


@dataclass(frozen=True)
class Drawer:
    """A drawer in a low cabinet, with an upright handle in front that a finger hooks from behind."""

    body = "cabinet"
    moving_body = "drawer"
    joint_name = "drawer_slide"
    travel = 0.06
    release_height, release_tolerance = 0.028, 0.014
    handle_offset = 0.070
    """How far in front of the drawer's middle its handle stands."""

    def xml(self) -> str:
        wood, front = 'rgba="0.62 0.44 0.26 1"', 'rgba="0.80 0.62 0.40 1"'
        inside, handle_offset = 'rgba="0.93 0.88 0.78 1"', 'rgba="0.15 0.30 0.60 1"'
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
    <geom type="box" pos="0.050 0 0.0035" size="0.018 0.006 0.0015" mass="0.003" {handle_offset}/>
    <geom type="box" pos="{self.handle_offset} 0 0.019" size="0.003 0.015 0.016" mass="0.005" {handle_offset} {smooth}/>
  </body>
</body>"""

    def opening(self, desk: DeskState) -> float:
        """Return how far it is open, from 0 to 1."""
        return desk.joint_position(self.joint_name) / self.travel

    def handle_position(self, desk: DeskState, opening: float | None = None) -> np.ndarray:
        """Return where the handle is [3], or would be at an opening from 0 to 1."""
        shift = 0.0 if opening is None else (opening - self.opening(desk)) * self.travel
        return body_to_world(desk, "drawer", (self.handle_offset + shift, 0.0, 0.020))

    def pull_direction(self, desk: DeskState) -> np.ndarray:
        """Return the horizontal direction [2] in which it opens."""
        return desk.rotation("cabinet")[:2, 0]

    def placement_point(self, desk: DeskState) -> np.ndarray:
        return body_to_world(desk, "drawer", (0.003, 0.0, 0.005))

    def contains(self, desk: DeskState, body: str) -> bool:
        x, y, z = world_to_body(desk, "drawer", desk.position(body))
        return bool(abs(x) < 0.028 and abs(y) < 0.029 and z < 0.036)


@dataclass(frozen=True)
class Button:
    """A button that is pressed from above; its cap shines from then on."""

    body = "button"
    moving_body = "button_cap"
    joint_name = "button_slide"
    press_depth = 0.004

    def xml(self) -> str:
        return f"""
<body name="button" mocap="true">
  <geom type="cylinder" pos="0 0 0.005" size="0.027 0.005" rgba="0.25 0.25 0.28 1"/>
  <body name="button_cap">
    <joint name="button_slide" type="slide" axis="0 0 -1" range="0 0.007" stiffness="180" damping="2"/>
    <geom name="button_cap" type="cylinder" pos="0 0 0.016" size="0.020 0.007" mass="0.01" material="lamp"
          rgba="{" ".join(map(str, self.colours(False)["button_cap"]))}"/>
  </body>
</body>"""

    def colours(self, pressed: bool) -> dict[str, Colour]:
        """Return the colour of what changes when it was pressed."""
        return {"button_cap": (0.10, 0.95, 0.20, 1.0) if pressed else (0.55, 0.02, 0.02, 1.0)}

    def is_pressed(self, desk: DeskState) -> bool:
        return desk.joint_position(self.joint_name) > self.press_depth

    def top(self, desk: DeskState) -> np.ndarray:
        return body_to_world(desk, "button_cap", (0.0, 0.0, 0.023))


@dataclass(frozen=True)
class Knob:
    """A knob with a lever, turned by pushing the lever anticlockwise to the green mark."""

    body = "knob"
    moving_body = "knob_lever"
    joint_name = "knob_hinge"
    target_angle = 1.25
    """Angle from which on it counts as turned; it stops at 1.6."""
    push_radius = 0.033
    """Where along the lever it is pushed, from the axis."""

    def xml(self) -> str:
        end = 0.040 * np.array([np.cos(1.5), np.sin(1.5)])
        return f"""
<body name="knob" mocap="true">
  <geom type="cylinder" pos="0 0 0.003" size="0.030 0.003" rgba="0.30 0.31 0.35 1"/>
  <geom type="cylinder" pos="{end[0]:.5f} {end[1]:.5f} 0.001" size="0.011 0.001" rgba="0.1 0.85 0.2 1"
        contype="0" conaffinity="0"/>
  <body name="knob_lever">
    <joint name="knob_hinge" type="hinge" axis="0 0 1" range="0 1.6" damping="0.004" frictionloss="0.008"/>
    <geom type="cylinder" pos="0 0 0.017" size="0.014 0.011" mass="0.01" rgba="0.62 0.10 0.62 1"/>
    <geom type="box" pos="0.023 0 0.020" size="0.023 0.0055 0.010" mass="0.01" rgba="0.80 0.25 0.80 1"
          friction="0.4 0.02 0.001"/>
  </body>
</body>"""

    def lever_position(self, desk: DeskState, angle: float | None = None) -> np.ndarray:
        """Return where the lever is pushed [3], or would be at an angle."""
        turn = 0.0 if angle is None else angle - desk.joint_position(self.joint_name)
        return body_to_world(
            desk, "knob_lever", (self.push_radius * np.cos(turn), self.push_radius * np.sin(turn), 0.020)
        )

    def push_direction(self, desk: DeskState) -> np.ndarray:
        """Return the horizontal direction [2] in which the lever turns."""
        return desk.rotation("knob_lever")[:2, 1]


@dataclass(frozen=True)
class Basin:
    """A bowl with a floor and a round wall, wide enough for one thing."""

    body = "basin"
    radius, height = 0.034, 0.020
    release_height, release_tolerance = 0.024, 0.014

    def xml(self) -> str:
        look = 'rgba="0.10 0.55 0.60 1"'
        floor = f'<geom type="cylinder" pos="0 0 0.002" size="{self.radius} 0.002" rgba="0.16 0.66 0.70 1"/>'
        wall = ring(self.radius, 0.002, 0.0, self.height, look)
        return f'<body name="basin" mocap="true">{floor}{wall}</body>'

    def placement_point(self, desk: DeskState) -> np.ndarray:
        return body_to_world(desk, "basin", (0.0, 0.0, 0.004))

    def contains(self, desk: DeskState, body: str) -> bool:
        offset = desk.position(body) - desk.position("basin")
        return bool(np.linalg.norm(offset[:2]) < self.radius - 0.004 and offset[2] < self.height + 0.012)


@dataclass(frozen=True)
class Mat:
    """A flat round mat that things are pushed onto."""

    body = "mat"
    radius = 0.042

    def xml(self) -> str:
        return (
            f'<body name="mat" mocap="true"><geom type="cylinder" pos="0 0 0.0005" size="{self.radius} 0.0005" '
            'rgba="0.20 0.35 0.75 1" contype="0" conaffinity="0"/></body>'
        )

    def placement_point(self, desk: DeskState) -> np.ndarray:
        return body_to_world(desk, "mat", (0.0, 0.0, 0.0))

    def contains(self, desk: DeskState, body: str) -> bool:
        offset = desk.position(body) - desk.position("mat")
        return bool(np.linalg.norm(offset[:2]) < self.radius - 0.020 and offset[2] < 0.030)
