"""Background: table, floor and walls in other colours, and from level 2 on with patterns of growing contrast.

Colours stay muted, so that the things, which have strong ones, are told apart from what they stand on.
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
"""Name of a material, used by nothing, that a model may hold for surfaces that have no texture of their own."""

SATURATION, CONTRAST = 0.09, 0.09
"""What one level adds: to the saturation of the colours, and to the difference of a pattern's two."""

FIRST_PATTERNED_LEVEL = 2


def perturb(world: PerturbableWorld, edits: ModelEdits, level: int, generator: np.random.Generator) -> dict[str, Any]:
    """Give every surface of the background another look; return the pattern and the colours, from 0 to 1."""
    model = world.model
    drawn: dict[str, Any] = {}
    materials, colours = edits.array("geom_matid"), edits.array("geom_rgba")
    appearances: dict[int, tuple[str, np.ndarray, np.ndarray]] = {}
    for geom in world.background:
        if level >= FIRST_PATTERNED_LEVEL and _texture(model, materials[geom]) is None and _backdrop(model) is not None:
            materials[geom] = _backdrop(model)
        texture = _texture(model, materials[geom])
        # Surfaces that share a texture, as walls do, go on looking alike.
        surface = -1 - geom if texture is None else texture
        if surface not in appearances:
            appearances[surface] = appearance = _sample_pattern(level, generator)
            seed = int(generator.integers(2**31))
            plain = level < FIRST_PATTERNED_LEVEL or texture is None
            if not plain:
                _write_texture(model, edits, texture, *appearance, seed)
            shown = appearance[1:2] if plain else appearance[1:]
            name = model.geom(geom).name or f"geometry {geom}"
            drawn[name] = {"pattern": "plain" if plain else appearance[0], "colours": np.round(shown, 3).tolist()}
        # Over a texture of its own, a colour is a tint.
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
    # A cube's six faces lie below each other; each of them shows the whole pattern.
    faces = 6 if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D and height == 6 * width else 1
    face = pattern(kind, height // faces, width, first, second, seed)
    data[..., :3] = np.tile(face, (faces, 1, 1))
