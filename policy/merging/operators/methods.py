"""The methods by which skills are merged, by name: what each makes of the skills' changes of one weight."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ....errors import InputError, unknown_name
from .arithmetic import drop_and_rescale, task_arithmetic
from .emr import unify
from .spectral import iso_c, iso_cts, knots, task_singular_vectors
from .task_vector import TaskVector
from .ties import AGGREGATES, ties
from .wudi import wudi

MASKS = ("task", "agreement", "consensus", "none")
"""What a skill takes of a merged change: what lies nearer to its own than nothing, what has its own's sign, what at
least two skills want, or everything."""


@dataclass(frozen=True)
class MergeOptions:
    """How to merge; raises InputError for values out of range.

    A method takes of the options what it knows: `keep` TIES and KnOTS, `drop` and `seed` DARE, `ridge` WUDI,
    `common` Iso-CTS.
    """

    method: str = "ties"
    """How the changes of a weight become one: see the list of methods."""
    masks: str | None = None
    """What every skill takes of the merged change: "task", where that is nearer to its own than nothing; "agreement",
    where it has its own's sign (EMR); "consensus", where two skills or more would take it, the same for all; "none",
    everything. The method's own when left out."""
    scale: float = 1.0
    """Factor of the merged change; a fitted scale of every skill and weight follows it, where there are masks."""
    strictness: float = 1.0
    """Of task masks: above 1 fewer entries pass, below 1 more, even some that point the wrong way."""
    keep: float = 1.0
    """Fraction of a skill's entries that take part, the largest first; the TIES paper keeps 0.2."""
    aggregate: str = "mean"
    """Of TIES: the "mean", the "sum" or the "max" of the entries that agree."""
    drop: float = 0.5
    """Chance with which DARE drops an entry; the others grow."""
    ridge: float = 1.0
    """How near WUDI stays to the sum of the changes; 0 is the exact minimiser."""
    common: float = 0.8
    """Part of the directions that Iso-CTS takes from the sum."""
    seed: int = 0
    """Draws what DARE drops."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        if self.masks is not None and self.masks not in MASKS:
            raise unknown_name("masks", self.masks, MASKS)
        if self.aggregate not in AGGREGATES:
            raise unknown_name("aggregate", self.aggregate, AGGREGATES)
        ranges = {
            "scale": (0 < self.scale < float("inf"), "a number above 0"),
            "strictness": (0 < self.strictness < float("inf"), "a number above 0"),
            "keep": (0 < self.keep <= 1, "above 0, at most 1"),
            "drop": (0 <= self.drop < 1, "0 up to below 1"),
            "ridge": (0 <= self.ridge < float("inf"), "a number of 0 or more"),
            "common": (0 < self.common <= 1, "above 0, at most 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                fix = f"The default is {type(self).__dataclass_fields__[name].default}."
                raise InputError(name, got=getattr(self, name), expected=expected, fix=fix)

    @property
    def mask_kind(self) -> str:
        """The masks that were asked for, or else the method's own."""
        return self.masks or METHODS[self.method].masks


TaskVectors = Sequence[TaskVector]


@dataclass(frozen=True)
class MergeMethod:
    """A method: `merge(vectors, options, thresholds, name)` returns a weight's merged change [m, n] before `scale`.

    `thresholds`: for methods that trim, the magnitude below which an entry of each skill does not take part. `source`:
    the paper.
    """

    merge: Callable[[TaskVectors, MergeOptions, Sequence[float] | None, str], torch.Tensor]
    source: str
    masks: str = "task"
    trims: bool = False


def _dense(vectors: TaskVectors) -> list[torch.Tensor]:
    return [vector.dense() for vector in vectors]


def _mean(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return task_arithmetic(_dense(vectors), scale=1 / len(vectors))


def _sum(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return task_arithmetic(_dense(vectors))


def _ties(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return ties(_dense(vectors), thresholds=thresholds, aggregate=options.aggregate)


def _dare(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    # Seeded by the weight's name, so that what is drawn does not hang on the order of the weights.
    generator = torch.Generator().manual_seed(options.seed + (zlib.crc32(name.encode()) << 8))
    dropped = [drop_and_rescale(delta, options.drop, generator) for delta in _dense(vectors)]
    return task_arithmetic(dropped, scale=1 / len(vectors))


def _emr(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return unify(_dense(vectors))


def _tsv(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    if min(vectors[0].shape) < len(vectors):
        return _mean(vectors, options, thresholds, name)  # no direction is left for each: as for what is no matrix
    return task_singular_vectors(vectors)


def _knots(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return knots(vectors, keep=options.keep, aggregate=options.aggregate)


def _wudi(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return wudi(vectors, ridge=options.ridge)


def _iso(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return iso_c(vectors)


def _iso_cts(
    vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str
) -> torch.Tensor:
    return iso_cts(vectors, common=options.common)


METHODS = {
    "mean": MergeMethod(_mean, "model soups, Wortsman et al. 2022"),
    "task_arithmetic": MergeMethod(_sum, "Ilharco et al. 2023"),
    "ties": MergeMethod(_ties, "Yadav et al. 2023", trims=True),
    "dare": MergeMethod(_dare, "Yu et al. 2024"),
    "emr": MergeMethod(_emr, "Huang et al. 2024", masks="agreement"),
    "consensus": MergeMethod(_sum, "Wang et al. 2024", masks="consensus"),
    "tsv": MergeMethod(_tsv, "Gargiulo et al. 2025"),
    "knots": MergeMethod(_knots, "Stoica et al. 2025"),
    "wudi": MergeMethod(_wudi, "Cheng et al. 2025"),
    "iso": MergeMethod(_iso, "Marczak et al. 2025"),
    "iso_own": MergeMethod(_iso_cts, "Marczak et al. 2025"),
}
"""The methods by name; all but "emr" and "consensus" leave every skill its own task mask, after MergeVLA."""
