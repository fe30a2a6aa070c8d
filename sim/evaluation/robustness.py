"""What an evaluation's disturbed episodes add up to: a rate for every axis and level, and what swaps betray.

Two averages are in use and they differ. The mean over axes gives every axis the same weight; the mean over episodes
gives every episode the same. LIBERO-Plus' own total is the latter, papers that quote it often give the former.
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
    """Return the episodes that an evaluation's plain figures are about: the unchanged ones, all when there are none."""
    return unchanged_records(records) or list(records)


def robustness_summary(records: Sequence[EpisodeRecord]) -> dict[str, Any] | None:
    """Return the figures of all perturbed episodes as plain JSON values; None when there are none.

    `cells` has a row for each axis and level, `axes` one for each axis over all of its levels. `refused` counts the
    episodes whose words the policy could not take, which are failures. `mean_of_axes` has no interval: axes are no
    sample of anything.
    """
    perturbed = [record for record in records if record.perturbation is not None]
    if not perturbed:
        return None
    by_cell: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for record in perturbed:
        perturbation = parse_perturbation(str(record.perturbation))
        by_cell.setdefault((perturbation.axis, perturbation.level), []).append(record)
    cells, axes = [], []
    for axis, words in AXES.items():
        members = {level: by_cell[axis, level] for level in LEVELS if (axis, level) in by_cell}
        if members:
            cells += [{"axis": axis, "level": level, **_metrics(each)} for level, each in members.items()]
            axes.append({"axis": axis, "words": words, **_metrics([each for row in members.values() for each in row])})
    rates = [axis["rate"] for axis in axes if axis["rate"] is not None]
    return {
        "unperturbed": _metrics(unchanged_records(records)) if unchanged_records(records) else None,
        "cells": cells,
        "axes": axes,
        "mean_of_axes": sum(rates) / len(rates) if rates else None,
        "mean_of_episodes": _metrics(perturbed),
    }


def memorisation_rows(records: Sequence[EpisodeRecord]) -> list[dict[str, Any]]:
    """Return, for each swap that was made, how often its words were followed and how often the old way was taken.

    `followed_instruction` is None where the words ask for nothing (see `swap`); both are rates with 95 % intervals. `by_chance` is
    how often a thing that is lifted without a thought is the one that counts as `acted_from_memorisation`; None where nobody knows.
    """
    rows = []
    for swap, question in SWAP_DESCRIPTIONS.items():
        finished = [record for record in records if record.swap == swap and record.outcome != "error"]
        if not finished:
            continue
        things = [record.drawn["things"] for record in finished if record.drawn and record.drawn.get("things")]
        counted = [each for each in map(followed_instruction, finished) if each is not None]
        rows.append(
            {
                "swap": swap,
                "question": question,
                "followed": asdict(_rate(counted)) if counted else None,
                "by_heart": asdict(_rate([acted_from_memorisation(record) for record in finished])),
                "by_chance": sum(1 / count for count in things) / len(things) if things else None,
            }
        )
    return rows


def robustness_table(figures: dict[str, Any]) -> list[str]:
    """Return the figures of `robustness_summary` as lines for people: an axis a row, a level a column, then both averages."""
    levels = sorted({cell["level"] for cell in figures["cells"]})
    rates = {(cell["axis"], cell["level"]): cell for cell in figures["cells"]}
    width = max(len("mean of episodes"), *map(len, AXES))
    lines = [f"{'axis':<{width}}  " + "  ".join(f"level {level}" for level in levels) + "      all  95 % interval"]
    for axis in figures["axes"]:
        row = "  ".join(f"{_percent(rates.get((axis['axis'], level))):>7}" for level in levels)
        lines.append(f"{axis['axis']:<{width}}  {row}  {_percent(axis):>7}  {_interval(axis)}")
    gap = " " * (9 * len(levels))
    if figures["unperturbed"]:
        lines.append(
            f"{'unperturbed':<{width}}  {gap}{_percent(figures['unperturbed']):>7}  {_interval(figures['unperturbed'])}"
        )
    total = figures["mean_of_episodes"]
    lines.append(f"{'mean of axes':<{width}}  {gap}{_percent({'rate': figures['mean_of_axes']}):>7}")
    lines.append(f"{'mean of episodes':<{width}}  {gap}{_percent(total):>7}  {_interval(total)}")
    if total["refused"]:
        lines.append(f"{total['refused']} episodes failed because the policy cannot take their words.")
    return lines


def swap_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of `memorisation_rows` as lines for people."""
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


def _percent(figures: dict[str, Any] | None) -> str:
    return "–" if figures is None or figures["rate"] is None else f"{100 * figures['rate']:.1f} %"


def _interval(figures: dict[str, Any]) -> str:
    return "" if figures["rate"] is None else f"{100 * figures['low']:5.1f} to {100 * figures['high']:5.1f}"


def followed_instruction(record: EpisodeRecord) -> bool | None:
    """Tell whether an episode with a swap went as the words asked; None where they asked for nothing."""
    return None if record.swap == "instruction" else record.outcome == "success"


def acted_from_memorisation(record: EpisodeRecord) -> bool:
    """Tell whether an episode with a swap went as it would have without: as what was learned by heart has it."""
    if record.swap == "position":
        return record.picked is not None and record.picked == record.other
    own = record.picked is not None and record.picked == record.target
    return own or (record.swap == "instruction" and record.outcome == "success")
