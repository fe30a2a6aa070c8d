"""Exact statistics over all frames of a dataset, for its `meta/stats.json`.

LeRobot 0.6.1 stores the frame-weighted mean of the quantiles of the episodes instead of the quantiles of the dataset.
These are much too narrow if the states differ from episode to episode.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..disk import write_atomically
from ..errors import InputError
from ..policy.datasets.columns import read_columns

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def exact_statistics(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Return min, max, mean, std, count and quantiles over the frames, in LeRobot's layout.

    Args:
        values: One feature of all frames, [F] or [F, width].

    Raises:
        InputError: A value is not finite.
    """
    values = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(values).all():
        fix = "Remove the damaged episode from the dataset."
        raise InputError("statistics", got="values that are not finite", expected="finite values", fix=fix)
    statistics = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        **dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True)),
    }
    return {name: row.tolist() for name, row in statistics.items()} | {"count": [len(values)]}


def write_exact_statistics(root: Path) -> None:
    """Write exact statistics of all numeric features to `meta/stats.json` of a dataset; those of the cameras stay."""
    columns = read_columns(root)
    path = columns.root / "meta" / "stats.json"
    statistics = json.loads(path.read_text()) if path.is_file() else {}
    statistics |= {key: exact_statistics(values) for key, values in columns.vectors.items()}
    write_atomically(path, json.dumps(dict(sorted(statistics.items())), indent=4))
