"""Options of LIBERO's worlds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class LiberoOptions:
    """How LIBERO's worlds are built."""

    protocol: Literal["openvla", "lerobot"] = "lerobot"
    """Published steps that an episode may take: at most 220 or 280 in libero_spatial; 280 in libero_object, 300 in
    libero_goal and 520 in libero_10 under both. 10 steps to let the scene settle come before and do not count."""
    visuals: Literal["stock", "fast"] = "stock"
    """Draw as published, or several times faster on a CPU: a simpler robot, no antialiasing, no mirrors. A policy must
    see what it was trained on."""
    libero_assets: Path | None = None
    """Folder of the meshes, textures and scenes; else the one that SACCADE_LIBERO_ASSETS names, else the hub's."""
    allow_physics: bool = False
    """Go on although scenes do not settle as they did for the published results; the result says so."""
