"""The MJCF model of the desk: table, bin, cameras, light, arm, fixtures and objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from . import arm
from .fixtures import OperableFixture

IMAGE_SIZES = (16, 640)
"""Smallest and largest height and width of a camera's image, in pixels."""

BIN_CENTRE = (0.16, 0.165)
BIN_HALF = 0.05
BIN_WALL = 0.032
"""The bin: centre and half width of its floor, and height of its walls, in metres."""

PHYSICS_STEPS = 12
"""Physics steps in one control step; the control rate decides their length."""

CAMERAS = ("front", "wrist")
"""Names of the cameras, in the order of the contract."""


def _bin_xml() -> str:
    x, y = BIN_CENTRE
    colour = 'rgba="0.45 0.32 0.20 1"'
    parts = [f'<geom name="bin_floor" type="box" pos="{x} {y} 0.002" size="{BIN_HALF} {BIN_HALF} 0.002" {colour}/>']
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        size_x, size_y = (0.003, BIN_HALF) if dx else (BIN_HALF, 0.003)
        parts.append(
            f'<geom type="box" pos="{x + dx * BIN_HALF} {y + dy * BIN_HALF} {BIN_WALL / 2}" '
            f'size="{size_x} {size_y} {BIN_WALL / 2}" {colour}/>'
        )
    return "".join(parts)


class SceneElement(Protocol):
    """A part of the scene: an object, a fixture or a cue."""

    def xml(self) -> str:
        """Return its MJCF."""
        ...


def scene_xml(objects: Sequence[SceneElement], fixtures: Sequence[SceneElement], *, has_bin: bool = True) -> str:
    """Return the MJCF of a desk; a reset sets the poses.

    Args:
        objects: Objects that can be picked.
        fixtures: Fixtures, landmarks and cues.
        has_bin: Whether the scene has the bin.
    """
    elements = "".join(element.xml() for element in (*fixtures, *objects))
    # The parts of a fixture overlap: their joint holds them, not contact.
    exclusions = "".join(
        f'<exclude body1="{fixture.body}" body2="{fixture.moving_body}"/>'
        for fixture in fixtures
        if isinstance(fixture, OperableFixture)
    )
    timestep = 1.0 / arm.CONTROL_HZ / PHYSICS_STEPS
    return f"""
<mujoco model="saccade desk">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep!r}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <global offwidth="640" offheight="640"/>
    <map znear="0.01"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
  </visual>
  {arm.DEFAULTS}
  <asset>
    <material name="lamp" emission="1" specular="0"/>
    <texture name="backdrop" type="2d" builtin="flat" width="256" height="256"/>
    <material name="backdrop" texture="backdrop" texrepeat="2 2" specular="0"/>
  </asset>
  <worldbody>
    <light pos="0.3 -0.3 1.2" dir="-0.1 0.3 -1" castshadow="false" diffuse="0.55 0.55 0.55" specular="0.1 0.1 0.1"/>
    <geom name="desk" type="plane" size="1 1 0.1" rgba="0.78 0.76 0.72 1" friction="1 0.02 0.001"/>
    <camera name="front" pos="0.50 0.022 0.47" xyaxes="0 1 0 -0.80 0 0.60" fovy="44"/>
    {_bin_xml() if has_bin else ""}
    {elements}
    {arm.body_xml()}
  </worldbody>
  <contact>{exclusions}</contact>
  {arm.actuator_xml()}
</mujoco>
"""
