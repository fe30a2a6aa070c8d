"""Objects of the desk: shapes, colours and their MJCF."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (0.84, 0.10, 0.10),
    "green": (0.08, 0.62, 0.16),
    "blue": (0.10, 0.24, 0.88),
    "yellow": (0.96, 0.82, 0.08),
    "orange": (0.98, 0.47, 0.05),
    "purple": (0.52, 0.12, 0.66),
    "white": (0.95, 0.95, 0.95),
}

SHAPES: dict[str, tuple[str, tuple[float, ...]]] = {
    "cube": ("box", (0.014, 0.014, 0.014)),
    "can": ("cylinder", (0.0125, 0.022)),
    "puck": ("cylinder", (0.0160, 0.011)),
    "cup": ("cylinder", (0.0150, 0.018)),
    "ball": ("sphere", (0.0085,)),
    "disc": ("cylinder", (0.0200, 0.009)),
}
"""MuJoCo geom type and size (half lengths; radius and half height) of each shape, in metres."""

RIM = 0.003
"""Height of the rim on a cup, in metres; the cup is solid, and the rim keeps a ball from rolling off."""


def ring(radius: float, half_thickness: float, bottom: float, height: float, attributes: str) -> str:
    """Return the MJCF of a round wall: eight boxes around the z axis. All lengths in metres.

    Args:
        radius: Radius of the wall's middle.
        half_thickness: Half the wall's thickness.
        bottom: Height of its lower edge.
        height: Height of the wall.
        attributes: Further attributes of the geoms.
    """
    half = (radius + half_thickness) * np.tan(np.pi / 8)
    walls = []
    for angle in np.arange(8) * np.pi / 4:
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        walls.append(
            f'<geom type="box" pos="{x:.6f} {y:.6f} {bottom + height / 2:.6f}" euler="0 0 {angle:.6f}" '
            f'size="{half_thickness} {half:.6f} {height / 2:.6f}" {attributes}/>'
        )
    return "".join(walls)


@dataclass(frozen=True)
class DeskObject:
    """An object that the arm can pick.

    Attributes:
        colour: A key of `COLOURS`.
        shape: A key of `SHAPES`.
        instance: Number among equal objects.
    """

    colour: str
    shape: str
    instance: int = 0

    @property
    def name(self) -> str:
        """Name in instructions: colour and shape."""
        return f"{self.colour} {self.shape}"

    @property
    def body(self) -> str:
        """Name of the body, joint and geom in the model."""
        return f"{self.colour}_{self.shape}_{self.instance}"

    @property
    def rest_height(self) -> float:
        """Height of the centre above the desk when it stands upright, in metres."""
        return SHAPES[self.shape][1][-1]

    def xml(self) -> str:
        """Return the object's MJCF."""
        kind, size = SHAPES[self.shape]
        red, green, blue = COLOURS[self.colour]
        # Stiff contacts: fingers must not sink into a pushed disc, nor into a cup, where they would hold the ball.
        hard = 'solref="0.006 1" priority="1"' if self.shape in ("cup", "disc") else ""
        # gravcomp has to be set here for MuJoCo to support it in this model; a reset clears it for objects in play.
        return (
            f'<body name="{self.body}" gravcomp="1"><freejoint name="{self.body}"/>'
            f'<geom name="{self.body}" type="{kind}" size="{" ".join(map(str, size))}" mass="0.02" condim="4" '
            f'rgba="{red} {green} {blue} 1" friction="1.2 0.02 0.002" {hard}/>{self._rim()}</body>'
        )

    def _rim(self) -> str:
        if self.shape != "cup":
            return ""
        radius, half = SHAPES["cup"][1]
        return ring(radius - 0.001, 0.001, half, RIM, 'rgba="0.30 0.30 0.34 1" mass="0.0002"')


@dataclass(frozen=True)
class LandmarkObject:
    """A landmark on the desk that is never picked.

    Attributes:
        kind: "bowl" or "plate".
    """

    kind: str

    @property
    def body(self) -> str:
        """Name of the body in the model."""
        return self.kind

    def xml(self) -> str:
        """Return the landmark's MJCF."""
        geometries = {"bowl": _bowl, "plate": _plate}[self.kind]()
        return f'<body name="{self.kind}" mocap="true">{geometries}</body>'


PLATE_RADIUS, PLATE_HEIGHT = 0.034, 0.006
BOWL_RADIUS = 0.021
"""Sizes of the landmarks, in metres."""


def _plate() -> str:
    half = PLATE_HEIGHT / 2
    return (
        f'<geom type="cylinder" pos="0 0 {half}" size="{PLATE_RADIUS} {half}" rgba="0.93 0.94 0.97 1" '
        'friction="1 0.02 0.001"/>'
    )


def _bowl() -> str:
    """Return a bowl as a stack of widening discs, dark so that it is visible in small images."""
    discs = ((0.003, 0.013), (0.009, 0.017), (0.015, BOWL_RADIUS))
    return "".join(
        f'<geom type="cylinder" pos="0 0 {height}" size="{radius} 0.003" rgba="0.10 0.55 0.60 1"/>'
        for height, radius in discs
    )
