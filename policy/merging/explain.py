"""Analyse a merge: where the changes of the skills overlap, conflict, and get lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .operators.task_vector import TaskVector


@dataclass(frozen=True)
class WeightReport:
    """Metrics of merging one weight of K skills.

    Attributes:
        name: Name of the weight.
        elements: Its number of entries.
        cosine: Cosine similarities of the skills' changes, [K, K].
        density: Fraction of the entries that each skill uses, [K].
        error: Norm of the difference between what a skill gets and its own change, relative to the latter, [K].
        selfish: Fraction of the entries that exactly one skill uses.
        shared: Fraction of the entries that two or more skills use.
        conflicts: Fraction of the entries where large changes have opposite signs.
    """

    name: str
    elements: int
    cosine: tuple[tuple[float, ...], ...]
    density: tuple[float, ...]
    error: tuple[float, ...]
    selfish: float
    shared: float
    conflicts: float


def compare(
    name: str,
    vectors: Sequence[TaskVector],
    deltas: Sequence[torch.Tensor],
    merged: torch.Tensor,
    masks: Sequence[torch.Tensor],
    scales: Sequence[float],
) -> WeightReport:
    """Compare the changes of one weight with what each skill gets of the merged change.

    Args:
        name: Name of the weight.
        vectors: Task vector of each of K skills.
        deltas: The same as dense matrices, each [m, n].
        merged: Merged change, [m, n].
        masks: Mask of each skill, boolean [m, n].
        scales: Scale of each skill.
    """
    norms = [max(float(vector.inner_product(vector)), 0.0) ** 0.5 for vector in vectors]
    cosine = tuple(
        tuple(float(one.inner_product(two)) / (a * b) if a * b else 0.0 for two, b in zip(vectors, norms, strict=True))
        for one, a in zip(vectors, norms, strict=True)
    )
    taken = torch.stack(list(masks)).sum(0)
    errors = [
        float((scale * mask * merged - delta).norm()) / norm if norm else 0.0
        for delta, mask, scale, norm in zip(deltas, masks, scales, norms, strict=True)
    ]
    # A sign counts only where the entry is larger than the root mean square of its skill's change.
    signs = torch.stack(
        [
            (delta * (delta.abs() > norm / delta.numel() ** 0.5)).sign()
            for delta, norm in zip(deltas, norms, strict=True)
        ]
    )
    return WeightReport(
        name=name,
        elements=merged.numel(),
        cosine=cosine,
        density=tuple(float(mask.float().mean()) for mask in masks),
        error=tuple(errors),
        selfish=float((taken == 1).float().mean()),
        shared=float((taken > 1).float().mean()),
        conflicts=float(((signs > 0).any(0) & (signs < 0).any(0)).float().mean()),
    )


def compare_factored(name: str, vectors: Sequence[TaskVector], truncated_vectors: Sequence[TaskVector]) -> WeightReport:
    """Compare the changes of one weight with the factors that each skill keeps; nothing is shared.

    Args:
        name: Name of the weight.
        vectors: Task vector of each of K skills.
        truncated_vectors: The same, truncated to the rank that is stored.
    """
    deltas = [vector.dense() for vector in vectors]
    masks = [torch.ones_like(delta, dtype=torch.bool) for delta in deltas]
    report = compare(name, vectors, deltas, torch.zeros_like(deltas[0]), masks, [1.0] * len(vectors))
    lost = [
        float((thin.dense() - delta).norm() / delta.norm()) if delta.any() else 0.0
        for thin, delta in zip(truncated_vectors, deltas, strict=True)
    ]
    return replace(report, density=(0.0,) * len(vectors), error=tuple(lost), selfish=0.0, shared=0.0)


def module_of(name: str) -> str:
    """Return the module of a weight: a layer of the trunk, or a block of a tower or of the expert."""
    match = re.match(
        r"(trunk\.decoder\.layers\.\d+|trunk\.[a-z_]+|tower\.[a-z_]+(?:\.\d+)?|expert\.blocks\.\d+|[a-z_]+)", name
    )
    return match.group(1).replace("trunk.decoder.layers", "trunk") if match else name


def by_module(report: Sequence[WeightReport]) -> list[dict[str, Any]]:
    """Return the metrics of each module, in the network's order: means over its weights, weighted by size."""
    parts: dict[str, list[WeightReport]] = {}
    for weight in report:
        parts.setdefault(module_of(weight.name), []).append(weight)
    rows = []
    for part, weights in parts.items():
        sizes = torch.tensor([float(weight.elements) for weight in weights])
        shares = sizes / sizes.sum()
        row: dict[str, Any] = {"part": part, "elements": int(sizes.sum())}
        for metric in ("cosine", "density", "error", "selfish", "shared", "conflicts"):
            values = torch.tensor([getattr(weight, metric) for weight in weights])
            row[metric] = torch.tensordot(shares, values, dims=1).tolist()
        rows.append(row)
    return rows


def format_table(report: Sequence[WeightReport], names: Sequence[str]) -> list[str]:
    """Return the metrics of each module as the lines of a table; `names` are those of the skills."""
    width = max(len(row["part"]) for row in by_module(report))
    head = "  ".join(f"{name[:11]:>11}" for name in names)
    lines = [
        f"{'':<{width}}  cosine  conflicts  selfish  shared   error: part of its change that a skill lost",
        f"{'part':<{width}}  {'':>6}  {'':>9}  {'':>7}  {'':>6}   {head}",
    ]
    for row in by_module(report):
        errors = "  ".join(f"{100 * error:9.0f} %" for error in row["error"])
        lines.append(
            f"{row['part']:<{width}}  {off_diagonal(row['cosine']):6.2f}  {100 * row['conflicts']:7.1f} %"
            f"  {100 * row['selfish']:5.1f} %  {100 * row['shared']:4.1f} %   {errors}"
        )
    return lines


def off_diagonal(matrix: Sequence[Sequence[float]]) -> float:
    """Return the mean of the off-diagonal entries of a matrix [K, K]."""
    count = len(matrix)
    rest = [value for row, values in enumerate(matrix) for column, value in enumerate(values) if row != column]
    return sum(rest) / max(1, count * (count - 1))


def plot(report: Sequence[WeightReport], names: Sequence[str], title: str, path: Path) -> None:
    """Plot the metrics of each module and write the image to `path`; `names` are those of the skills."""
    from matplotlib.figure import Figure

    rows = by_module(report)
    parts = [row["part"] for row in rows]
    figure = Figure(figsize=(13, 0.24 * len(rows) + 2.4), layout="constrained")
    similar, taken, lost = figure.subplots(1, 3, sharey=True)
    places = list(range(len(rows)))
    pairs = [(one, two) for one in range(len(names)) for two in range(one + 1, len(names))]
    for one, two in pairs[:12]:
        label = f"{names[one]} and {names[two]}"
        similar.plot([row["cosine"][one][two] for row in rows], places, ".-", label=label, linewidth=0.8)
    similar.axvline(0, color="0.7", linewidth=0.8)
    similar.set_xlabel("cosine of the skills' changes")
    similar.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2)
    left = [0.0] * len(rows)
    for metric, colour, label in (
        ("selfish", "#d08a2c", "used by one skill"),
        ("shared", "#3b7ea1", "used by two or more"),
    ):
        values = [100 * row[metric] for row in rows]
        taken.barh(places, values, left=left, color=colour, label=label)
        left = [before + value for before, value in zip(left, values, strict=True)]
    taken.plot([100 * row["conflicts"] for row in rows], places, "k.", label="opposite signs")
    taken.set_xlabel("% of the entries")
    taken.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=3)
    for number, name in enumerate(names):
        lost.plot([100 * row["error"][number] for row in rows], places, ".-", label=name, linewidth=0.8)
    lost.set_xlim(left=0)
    lost.set_xlabel("% of its change that a skill lost")
    lost.legend(fontsize=7, loc="best")
    similar.set_yticks(places, parts, fontsize=7)
    similar.invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def as_json(report: Sequence[WeightReport], names: Sequence[str]) -> dict[str, Any]:
    """Return the full report as JSON values; `names` are those of the skills."""
    return {"skills": list(names), "parts": by_module(report), "weights": [asdict(weight) for weight in report]}
