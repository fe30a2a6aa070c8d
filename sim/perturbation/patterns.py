"""Procedural textures: checks, stripes, a gradient, blots, grain."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

PATTERNS = ("checks", "stripes", "gradient", "blots", "grain")


def pattern(kind: str, height: int, width: int, first: np.ndarray, second: np.ndarray, seed: int) -> np.ndarray:
    """Return a texture of two colours.

    Args:
        kind: One of `PATTERNS`.
        height: Height in texels.
        width: Width in texels.
        first: First colour [3], from 0 to 1.
        second: Second colour [3], from 0 to 1.
        seed: Seed of the random patterns.

    Returns:
        The texture, uint8 [height, width, 3].
    """
    rows, columns = np.mgrid[0:height, 0:width]
    across, down = columns / width, rows / height
    generator = np.random.default_rng(seed)
    match kind:
        case "checks":
            share = ((8 * across).astype(int) + (8 * down).astype(int)) % 2
        case "stripes":
            share = ((10 * across).astype(int)) % 2
        case "gradient":
            share = down
        case "blots":
            share = _noise(generator, height, width, 10) > 0.5
        case "grain":
            share = 0.6 * _noise(generator, height, width, 24) + 0.4 * _noise(generator, height, width, 96)
        case _:
            raise ValueError(f"unknown pattern {kind!r}")
    share = np.asarray(share, dtype=np.float64)[..., None]
    return np.round(255 * ((1 - share) * first + share * second)).astype(np.uint8)


def muted_colour(generator: np.random.Generator, saturation: float, low: float, high: float) -> np.ndarray:
    """Draw a colour [3], from 0 to 1, with any hue, a limited saturation, and a value between `low` and `high`."""
    hue, part, value = generator.uniform(0, 1), generator.uniform(0.5, 1), generator.uniform(low, high)
    return np.array(colorsys.hsv_to_rgb(hue, saturation * part, value))


def _noise(generator: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return smooth noise [height, width] from 0 to 1 with `cells` cells in each direction."""
    coarse = Image.fromarray(generator.random((cells, cells), dtype=np.float32))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return (fine - fine.min()) / max(np.ptp(fine), 1e-9)
