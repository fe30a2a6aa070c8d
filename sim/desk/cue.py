"""A cue that has to be remembered: a halo shines under one of several equal things and is dark before the arm moves."""

from __future__ import annotations

from dataclasses import dataclass

from .objects import DeskObject

HALO, GO_LAMP = "halo", "go_lamp"
"""Names of the two lamps' geometries in the model."""

HALO_ON, HALO_OFF = (0.0, 0.72, 0.95, 1.0), (0.0, 0.0, 0.0, 0.0)
GO_LAMP_ON, GO_LAMP_OFF = (0.15, 1.0, 0.25, 1.0), (0.16, 0.17, 0.16, 1.0)
"""Colours of the halo and of the go lamp, on and off; the halo leaves no trace when it is off."""

GO_LAMP_POSITION = (0.10, -0.20)
"""Where the go lamp stands, in metres: in the front camera's picture, out of the arm's way."""


@dataclass(frozen=True)
class Cue:
    """`lit_object` has the halo for the first `lit_steps` control steps; from `go_step` on the go lamp tells the arm to move.

    A policy that decides 16 steps at once must still see nothing, and be shown nothing, of where the arm will go in
    the decision after the last lit frame: `go_step` lies more than 16 steps after `lit_steps`.
    """

    lit_object: DeskObject
    lit_steps: int = 12
    go_step: int = 34

    def xml(self) -> str:
        """Return the two lamps; both touch nothing."""
        x, y = GO_LAMP_POSITION
        untouchable = 'contype="0" conaffinity="0"'
        return (
            f'<body name="{HALO}" mocap="true"><geom name="{HALO}" type="cylinder" size="0.030 0.0008" material="lamp" '
            f"{untouchable}/></body>"
            f'<geom type="cylinder" pos="{x} {y} 0.005" size="0.026 0.005" rgba="0.30 0.30 0.32 1" {untouchable}/>'
            f'<geom name="{GO_LAMP}" type="cylinder" pos="{x} {y} 0.012" size="0.020 0.004" material="lamp" '
            f"{untouchable}/>"
        )

    def colours(self, step: int) -> dict[str, tuple[float, ...]]:
        """Return the colour of each lamp after this many control steps."""
        return {
            HALO: HALO_ON if step < self.lit_steps else HALO_OFF,
            GO_LAMP: GO_LAMP_ON if step >= self.go_step else GO_LAMP_OFF,
        }
