"""Background: table, floor and walls in other colours, from level 2 on with patterns of growing contrast.

The colours are muted, so that the objects, which have strong colours, remain visible.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from .edits import ModelEdits
from .patterns import PATTERNS, muted_colour, pattern
from .world import PerturbableWorld

REQUIRED_MEMBERS = ("model", "background", "observe", "recreate_renderers")

BACKDROP = "backdrop"
"""Name of an unused material that a model may have for surfaces without a texture."""

SATURATION, CONTRAST = 0.09, 0.09
"""Increase per level: of the colours' saturation, and of the contrast of a pattern."""

FIRST_PATTERNED_LEVEL = 2


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Change the colour or texture of every background surface; return patterns and colours, from 0 to 1."""
    model = world.model
    drawn: dict[str, Any] = {}
    materials, colours = edits.array("geom_matid"), edits.array("geom_rgba")
    appearances: dict[int, tuple[str, np.ndarray, np.ndarray]] = {}
    for geom in world.background:
        if level >= FIRST_PATTERNED_LEVEL and _texture(model, materials[geom]) is None and _backdrop(model) is not None:
            materials[geom] = _backdrop(model)
        texture = _texture(model, materials[geom])
        # Surfaces that share a texture, such as walls, keep looking alike.
        surface = -1 - geom if texture is None else texture
        if surface not in appearances:
            appearances[surface] = appearance = _sample_pattern(level, generator)
            seed = int(generator.integers(2**31))
            plain = level < FIRST_PATTERNED_LEVEL or texture is None
            if texture is not None and not plain:
                _write_texture(model, edits, texture, *appearance, seed)
            shown = appearance[1:2] if plain else appearance[1:]
            name = model.geom(geom).name or f"geometry {geom}"
            drawn[name] = {"pattern": "plain" if plain else appearance[0], "colours": np.round(shown, 3).tolist()}
        # The colour of a textured surface multiplies the texture.
        patterned = level >= FIRST_PATTERNED_LEVEL and texture is not None
        colours[geom, :3] = 1.0 if patterned else appearances[surface][1]
    if edits.needs_new_renderer:
        world.recreate_renderers()
    return drawn


def _sample_pattern(level: int, generator: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
    """Draw a pattern and its two colours."""
    kind = str(generator.choice(PATTERNS))
    first = muted_colour(generator, level * SATURATION, 0.45, 0.85)
    away = generator.choice((-1.0, 1.0)) * level * CONTRAST
    return kind, first, np.clip(first + away, 0.1, 1.0)


def _backdrop(model: Any) -> int | None:
    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_MATERIAL, BACKDROP)
    return None if found < 0 else found


def _texture(model: Any, material: int) -> int | None:
    if material < 0:
        return None
    found = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])
    return None if found < 0 else found


def _write_texture(
    model: Any, edits: ModelEdits, texture: int, kind: str, first: np.ndarray, second: np.ndarray, seed: int
) -> None:
    height, width, channels = (int(getattr(model, f"tex_{name}")[texture]) for name in ("height", "width", "nchannel"))
    start = int(model.tex_adr[texture])
    data = edits.rows("tex_data", start, start + height * width * channels).reshape(height, width, channels)
    # The six faces of a cube texture are stacked; each of them shows the whole pattern.
    faces = 6 if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D and height == 6 * width else 1
    face = pattern(kind, height // faces, width, first, second, seed)
    data[..., :3] = np.tile(face, (faces, 1, 1))
