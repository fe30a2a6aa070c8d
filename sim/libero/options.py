"""Command options of LIBERO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class LiberoOptions:
    """How LIBERO's environments are built."""

    protocol: Literal["openvla", "lerobot"] = "lerobot"
    """Step limit of an episode: openvla (220 in libero_spatial) or lerobot (280 in libero_spatial). Both: 280 in
    libero_object, 300 in libero_goal, 520 in libero_10. The 10 settling steps before are not counted."""
    visuals: Literal["stock", "fast"] = "stock"
    """stock renders as published. fast renders several times faster on a CPU: a simpler robot, no antialiasing, no
    mirrors. Evaluate a policy with the visuals of its training data."""
    libero_assets: Path | None = None
    """Folder of the LIBERO assets (meshes, textures, scenes). Default: the variable SACCADE_LIBERO_ASSETS, then the
    Hugging Face hub."""
    allow_physics: bool = False
    """Continue although scenes do not settle as in the published results. The result is marked so."""
