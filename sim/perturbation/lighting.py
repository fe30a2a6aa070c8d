"""Lighting: other strength, colour and direction of the lights, from level 3 on with shadows."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from .edits import ModelEdits
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "data", "observe", "recreate_renderers")

BRIGHTER, DARKER, TINT, DIRECTION_DEGREES = 0.10, -0.20, 0.055, 9.0
"""Largest change per level: of the logarithm of the strength (up, down), of a colour channel (fraction), of the
direction. The scenes are bright, with pale surfaces nearly white: there is more room to darken than to brighten."""

MAX_LIGHT_SHIFT = 1.0
"""Largest displacement of a light, in metres."""

FIRST_SHADOW_LEVEL = 3
SHADOW_SIZE = 1024
"""Size of the shadow map, in texels, for a model without shadows."""


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Change the lights and the headlight of a world; return the changes."""
    strength = float(np.exp(generator.choice((BRIGHTER, DARKER)) * generator.uniform(0.6, 1.0) * level))
    tint = 1.0 + generator.uniform(-1.0, 1.0, 3) * level * TINT
    colour = strength * tint / tint.mean()
    for name in ("light_diffuse", "light_ambient", "vis.headlight.diffuse", "vis.headlight.ambient"):
        edits.array(name)[...] *= colour
    directions, positions = edits.array("light_dir"), edits.array("light_pos")
    towards = generator.uniform(0.0, 2.0 * np.pi)
    tilt = np.deg2rad(level * DIRECTION_DEGREES)
    for light in range(world.model.nlight):
        distance = np.linalg.norm(positions[light])
        before = directions[light].copy()
        sideways = np.array([np.cos(towards), np.sin(towards), 0.0])
        directions[light] = _rotate_towards(before, sideways, tilt)
        # Move the light to the opposite side, so that it still lights the same spot, but keep it within the room.
        shift = (directions[light] - before) * distance
        positions[light] -= shift * min(1.0, MAX_LIGHT_SHIFT / max(float(np.linalg.norm(shift)), 1e-9))
    shadows = level >= FIRST_SHADOW_LEVEL and world.model.nlight > 0
    if shadows:
        edits.array("light_castshadow")[0] = True
        if world.model.vis.quality.shadowsize == 0:
            edits.set("vis.quality.shadowsize", SHADOW_SIZE)
            world.recreate_renderers()
    mujoco.mj_camlight(world.model, world.data)
    return {
        "strength": round(strength, 3),
        "colour": [round(float(part), 3) for part in tint / tint.mean()],
        "tilted_degrees": level * DIRECTION_DEGREES,
        "shadows": bool(shadows),
    }


def _rotate_towards(direction: np.ndarray, sideways: np.ndarray, angle: float) -> np.ndarray:
    """Rotate a direction [3] by an angle in radians towards a horizontal one; it always points downwards."""
    length = np.linalg.norm(direction)
    unit = direction / max(length, 1e-9)
    across = sideways - unit * (sideways @ unit)
    across /= max(np.linalg.norm(across), 1e-9)
    turned = np.cos(angle) * unit + np.sin(angle) * across
    turned[2] = min(turned[2], -0.35)
    return turned / np.linalg.norm(turned) * length
