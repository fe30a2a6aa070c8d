"""Metrics of perturbed and swapped episodes: success by axis and level, and memorisation by swap.

Two averages are in use and they differ. The mean of axes gives every axis the same weight, the mean of episodes every
episode. LIBERO-Plus reports the mean of episodes; papers that quote it often report the mean of axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..perturbation.axes import AXES, LEVELS, parse_perturbation
from ..perturbation.swap import SWAP_DESCRIPTIONS
from .statistics import SuccessRate, success_rate, wilson_interval

if TYPE_CHECKING:
    from .records import EpisodeRecord


def unchanged_records(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the episodes that were neither perturbed nor swapped."""
    return [record for record in records if record.perturbation is None and record.swap is None]


def headline_records(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the episodes for an evaluation's main metrics: the unchanged ones, or all if there are none."""
    return unchanged_records(records) or list(records)


def robustness_summary(records: Sequence[EpisodeRecord]) -> dict[str, Any] | None:
    """Compute the metrics of all perturbed episodes.

    Args:
        records: Records of one run, perturbed or not.

    Returns:
        Plain JSON values, or None if no episode was perturbed. `cells` has one row for each axis and level, `axes` one
        for each axis over all levels. `refused` counts the episodes whose instruction the policy refused; they are
        failures. `mean_of_axes` has no interval, because the axes are no random sample.
    """
    perturbed = [record for record in records if record.perturbation is not None]
    if not perturbed:
        return None
    by_cell: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for record in perturbed:
        perturbation = parse_perturbation(str(record.perturbation))
        by_cell.setdefault((perturbation.axis, perturbation.level), []).append(record)
    cells, axes = [], []
    for axis, description in AXES.items():
        members = {level: by_cell[axis, level] for level in LEVELS if (axis, level) in by_cell}
        if members:
            cells += [{"axis": axis, "level": level, **_metrics(each)} for level, each in members.items()]
            axes.append(
                {"axis": axis, "words": description, **_metrics([each for row in members.values() for each in row])}
            )
    rates = [axis["rate"] for axis in axes if axis["rate"] is not None]
    return {
        "unperturbed": _metrics(unchanged_records(records)) if unchanged_records(records) else None,
        "cells": cells,
        "axes": axes,
        "mean_of_axes": sum(rates) / len(rates) if rates else None,
        "mean_of_episodes": _metrics(perturbed),
    }


def memorisation_rows(records: Sequence[EpisodeRecord]) -> list[dict[str, Any]]:
    """Compute, for each swap, how often the policy followed the instruction and how often it acted from memorisation.

    Args:
        records: Records of one run, swapped or not.

    Returns:
        One row for each swap that was made. `followed` and `by_heart` are rates with 95 % intervals, see
        `followed_instruction` and `acted_from_memorisation`; `followed` is None where the instruction asks for nothing
        that is there. `by_chance` is the rate of `by_heart` for an object picked at random; None if it is not known.
    """
    rows = []
    for swap, question in SWAP_DESCRIPTIONS.items():
        finished = [record for record in records if record.swap == swap and record.outcome != "error"]
        if not finished:
            continue
        object_counts = [record.drawn["things"] for record in finished if record.drawn and record.drawn.get("things")]
        counted = [each for each in map(followed_instruction, finished) if each is not None]
        rows.append(
            {
                "swap": swap,
                "question": question,
                "followed": asdict(_rate(counted)) if counted else None,
                "by_heart": asdict(_rate([acted_from_memorisation(record) for record in finished])),
                "by_chance": sum(1 / count for count in object_counts) / len(object_counts) if object_counts else None,
            }
        )
    return rows


def robustness_table(metrics: dict[str, Any]) -> list[str]:
    """Return `robustness_summary` as lines of a table: a row for each axis, a column for each level, both averages."""
    levels = sorted({cell["level"] for cell in metrics["cells"]})
    rates = {(cell["axis"], cell["level"]): cell for cell in metrics["cells"]}
    width = max(len("mean of episodes"), *map(len, AXES))
    lines = [f"{'axis':<{width}}  " + "  ".join(f"level {level}" for level in levels) + "      all  95 % interval"]
    for axis in metrics["axes"]:
        row = "  ".join(f"{_percent(rates.get((axis['axis'], level))):>7}" for level in levels)
        lines.append(f"{axis['axis']:<{width}}  {row}  {_percent(axis):>7}  {_interval(axis)}")
    gap = " " * (9 * len(levels))
    if metrics["unperturbed"]:
        lines.append(
            f"{'unperturbed':<{width}}  {gap}{_percent(metrics['unperturbed']):>7}  {_interval(metrics['unperturbed'])}"
        )
    total = metrics["mean_of_episodes"]
    lines.append(f"{'mean of axes':<{width}}  {gap}{_percent({'rate': metrics['mean_of_axes']}):>7}")
    lines.append(f"{'mean of episodes':<{width}}  {gap}{_percent(total):>7}  {_interval(total)}")
    if total["refused"]:
        lines.append(f"{total['refused']} episodes failed because the policy refused their instruction.")
    return lines


def swap_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of `memorisation_rows` as lines of a table."""
    width = max(len(row["question"]) for row in rows)
    lines = [f"{'swap':<11}  {'':<{width}}  followed  by heart  95 % interval  by chance  episodes"]
    for row in rows:
        own = row["by_heart"]
        lines.append(
            f"{row['swap']:<11}  {row['question']:<{width}}  {_percent(row['followed']):>8}  {_percent(own):>8}  "
            f"{_interval(own):>13}  {_percent({'rate': row['by_chance']}):>9}  {own['episodes']:8d}"
        )
    return lines


def _metrics(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    finished = [record for record in records if record.outcome != "error"]
    return {
        **asdict(success_rate(records)),
        "errors": len(records) - len(finished),
        "refused": sum(record.steps == 0 and record.error is not None for record in finished),
    }


def _rate(values: Sequence[bool]) -> SuccessRate:
    low, high = wilson_interval(sum(values), len(values))
    return SuccessRate(sum(values), len(values), sum(values) / len(values), low, high)


def _percent(metrics: dict[str, Any] | None) -> str:
    return "–" if metrics is None or metrics["rate"] is None else f"{100 * metrics['rate']:.1f} %"


def _interval(metrics: dict[str, Any]) -> str:
    return "" if metrics["rate"] is None else f"{100 * metrics['low']:5.1f} to {100 * metrics['high']:5.1f}"


def followed_instruction(record: EpisodeRecord) -> bool | None:
    """Tell whether a swapped episode followed its instruction; None if that asks for nothing that is there."""
    return None if record.swap == "instruction" else record.outcome == "success"


def acted_from_memorisation(record: EpisodeRecord) -> bool:
    """Tell whether a swapped episode went as it would have without the swap, as memorised behaviour does."""
    if record.swap == "position":
        return record.picked is not None and record.picked == record.other
    own = record.picked is not None and record.picked == record.target
    return own or (record.swap == "instruction" and record.outcome == "success")
