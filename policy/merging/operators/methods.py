"""The merge methods by name, and their options."""

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
"""Masks of the merged change: where it is nearer to the skill's change than zero is; where the signs agree; where two
or more skills would use it, the same mask for all; or no mask."""


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge; raises InputError for values out of range.

    Some options belong to one method: `keep` and `aggregate` to TIES and KnOTS, `drop` and `seed` to DARE, `ridge` to
    WUDI, `common` to Iso-CTS.
    """

    method: str = "ties"
    """Merge method, a key of `METHODS`."""
    masks: str | None = None
    """Mask of the merged change for each skill: "task", where it is nearer to the skill's change than zero is;
    "agreement", where the signs agree (EMR); "consensus", where two or more skills would use it, the same for all;
    "none". Default: the mask of the method."""
    scale: float = 1.0
    """Scale of the merged change. With masks, a fitted scale of every skill and weight is applied after it."""
    strictness: float = 1.0
    """Threshold of task masks: above 1 fewer entries pass; below 1 more, even some of the wrong sign."""
    keep: float = 1.0
    """Fraction of a skill's entries that are kept, the largest first; the TIES paper keeps 0.2."""
    aggregate: str = "mean"
    """How entries that agree are combined: "mean", "sum" or "max"."""
    drop: float = 0.5
    """Drop rate of DARE."""
    ridge: float = 1.0
    """Strength of WUDI's regularisation towards the sum of the changes; 0 gives the exact minimum."""
    common: float = 0.8
    """Fraction of singular directions that Iso-CTS takes from the sum."""
    seed: int = 0
    """Random seed of DARE."""

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
                fix = f"Use {type(self).__dataclass_fields__[name].default}."
                raise InputError(name, got=getattr(self, name), expected=expected, fix=fix)

    @property
    def mask_kind(self) -> str:
        """The chosen kind of masks, or else that of the method."""
        return self.masks or METHODS[self.method].masks


TaskVectors = Sequence[TaskVector]


@dataclass(frozen=True)
class MergeMethod:
    """A merge method.

    Attributes:
        merge: Called as `merge(vectors, options, thresholds, name)` with the task vectors [m, n] of the weight `name`;
            returns the merged change [m, n] before `scale`. `thresholds`: see `ties`.
        source: The paper.
        masks: The kind of masks that belong to the method.
        trims: Whether it needs thresholds when `keep` is below 1.
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
    # Seeded by the name of the weight, so that the result does not depend on the order of the weights.
    generator = torch.Generator().manual_seed(options.seed + (zlib.crc32(name.encode()) << 8))
    dropped = [drop_and_rescale(delta, options.drop, generator) for delta in _dense(vectors)]
    return task_arithmetic(dropped, scale=1 / len(vectors))


def _emr(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    return unify(_dense(vectors))


def _tsv(vectors: TaskVectors, options: MergeOptions, thresholds: Sequence[float] | None, name: str) -> torch.Tensor:
    if min(vectors[0].shape) < len(vectors):
        return _mean(vectors, options, thresholds, name)  # less than one direction for each skill
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
"""The methods by name; all but "emr" and "consensus" use one task mask for each skill, as MergeVLA does."""
