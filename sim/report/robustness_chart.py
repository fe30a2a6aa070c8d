"""Coordinates of a radar chart of robustness: one spoke for each axis, one outline for each level or run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

RADIUS, LABEL_RADIUS = 100.0, 116.0
"""Distance from the centre of a rate of 1, and of the names of the axes."""

RING_RATES = (0.25, 0.5, 0.75, 1.0)

MIN_AXES = 3
"""A chart with fewer axes has no area."""


def radar(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compute the chart of one run or of several.

    Args:
        runs: Each has a `label`, a `tone` and, as `robustness`, its `robustness_summary`. A single run gives an outline
            for each level; several runs give one outline each, over all levels.

    Returns:
        None with fewer than three axes. Else, with the centre at (0, 0): `spokes` with name and position, `rings` and
        `shapes` with the points of SVG polygons.
    """
    axes = list(dict.fromkeys(axis["axis"] for run in runs for axis in run["robustness"]["axes"]))
    if len(axes) < MIN_AXES:
        return None
    directions = [math.tau * place / len(axes) - math.pi / 2 for place in range(len(axes))]
    spokes = [
        {
            "name": name.replace("_", " "),
            "end": _point(angle, RADIUS),
            "at": _point(angle, LABEL_RADIUS),
            "anchor": "middle" if abs(math.cos(angle)) < 0.3 else "start" if math.cos(angle) > 0 else "end",
        }
        for name, angle in zip(axes, directions, strict=True)
    ]
    rings = [_corners(dict.fromkeys(axes, ring), axes, directions) for ring in RING_RATES]
    return {"spokes": spokes, "rings": rings, "shapes": _shapes(runs, axes, directions)}


def _shapes(
    runs: Sequence[Mapping[str, Any]], axes: Sequence[str], directions: Sequence[float]
) -> list[dict[str, Any]]:
    if len(runs) > 1:
        return [
            {
                "label": run["label"],
                "tone": run["tone"],
                "points": _corners(
                    {axis["axis"]: axis["rate"] for axis in run["robustness"]["axes"]}, axes, directions
                ),
            }
            for run in runs
        ]
    by_level: dict[int, dict[str, float | None]] = {}
    for cell in runs[0]["robustness"]["cells"]:
        by_level.setdefault(cell["level"], {})[cell["axis"]] = cell["rate"]
    return [
        {"label": f"level {level}", "tone": f"run{place % 4}", "points": _corners(rates, axes, directions)}
        for place, (level, rates) in enumerate(sorted(by_level.items()))
    ]


def _corners(rates: Mapping[str, float | None], axes: Sequence[str], directions: Sequence[float]) -> str:
    """Return the points of the axes that have a rate; the outline skips the others."""
    known = [(rates.get(axis), angle) for axis, angle in zip(axes, directions, strict=True)]
    return " ".join(f"{x},{y}" for x, y in (_point(angle, RADIUS * rate) for rate, angle in known if rate is not None))


def _point(angle: float, distance: float) -> tuple[float, float]:
    return round(distance * math.cos(angle), 1), round(distance * math.sin(angle), 1)
