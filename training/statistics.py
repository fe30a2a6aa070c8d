"""Exact statistics of demonstrations, over all frames, in the dataset's `meta/stats.json`.

LeRobot 0.6.1 stores the frame-weighted mean of each episode's quantiles in the place of the dataset's quantiles: on
states that differ from episode to episode they are far too narrow.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..policy.datasets.columns import read_columns

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def exact_statistics(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Return min, max, mean, std, count and quantiles of [F] or [F, width] over its frames, as LeRobot lays them out.

    Raises InputError when a number is not finite.
    """
    values = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(values).all():
        fix = "Find the damaged episode and leave it out."
        raise InputError("statistics", got="numbers that are not finite", expected="finite numbers", fix=fix)
    statistics = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        **dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True)),
    }
    return {name: row.tolist() for name, row in statistics.items()} | {"count": [len(values)]}


def write_exact_statistics(root: Path) -> None:
    """Put exact statistics of all numeric features into a dataset's `meta/stats.json`; the cameras' rows stay."""
    columns = read_columns(root)
    path = columns.root / "meta" / "stats.json"
    statistics = json.loads(path.read_text()) if path.is_file() else {}
    statistics |= {key: exact_statistics(values) for key, values in columns.vectors.items()}
    temporary = path.with_name("stats.json.tmp")
    temporary.write_text(json.dumps(dict(sorted(statistics.items())), indent=4))
    os.replace(temporary, path)
