"""A cue to remember: a halo lights up under one of several equal objects, and is off before the arm moves."""

from __future__ import annotations

from dataclasses import dataclass

from ..objects import DeskObject

HALO, GO_LAMP = "halo", "go_lamp"
"""Names of the two lamps' geoms in the model; the halo's body has the same name."""

HALO_ON, HALO_OFF = (0.0, 0.72, 0.95, 1.0), (0.0, 0.0, 0.0, 0.0)
GO_LAMP_ON, GO_LAMP_OFF = (0.15, 1.0, 0.25, 1.0), (0.16, 0.17, 0.16, 1.0)
"""Colours (RGBA) of the halo and of the go lamp, on and off; the halo is invisible when it is off."""

GO_LAMP_POSITION = (0.10, -0.20)
"""Position of the go lamp in metres: in the front camera's view, out of the arm's way."""


@dataclass(frozen=True)
class Cue:
    """A halo that marks one object for the first steps, and a go lamp that later tells the arm to move.

    A policy that decides 16 steps at once must see no halo, and must not be trained on motion, in a decision that
    starts after the last lit frame: `go_step` is more than 16 steps after `lit_steps`.

    Attributes:
        lit_object: The object with the halo.
        lit_steps: The halo is on for this number of control steps.
        go_step: The go lamp is on from this control step on.
    """

    lit_object: DeskObject
    lit_steps: int = 12
    go_step: int = 34

    def xml(self) -> str:
        """Return the MJCF of the two lamps; neither collides."""
        x, y = GO_LAMP_POSITION
        no_collision = 'contype="0" conaffinity="0"'
        return (
            f'<body name="{HALO}" mocap="true"><geom name="{HALO}" type="cylinder" size="0.030 0.0008" material="lamp" '
            f"{no_collision}/></body>"
            f'<geom type="cylinder" pos="{x} {y} 0.005" size="0.026 0.005" rgba="0.30 0.30 0.32 1" {no_collision}/>'
            f'<geom name="{GO_LAMP}" type="cylinder" pos="{x} {y} 0.012" size="0.020 0.004" material="lamp" '
            f"{no_collision}/>"
        )

    def colours(self, step: int) -> dict[str, tuple[float, ...]]:
        """Return the colour (RGBA) of each lamp's geom after a number of control steps."""
        return {
            HALO: HALO_ON if step < self.lit_steps else HALO_OFF,
            GO_LAMP: GO_LAMP_ON if step >= self.go_step else GO_LAMP_OFF,
        }
