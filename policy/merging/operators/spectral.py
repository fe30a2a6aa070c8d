"""Merging in the space of singular vectors: TSV-M, KnOTS, Iso-C and Iso-CTS, all from the low-rank factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....errors import InputError
from .task_vector import TaskVector, common_shape, sum_vectors
from .ties import ties


def task_singular_vectors(vectors: Sequence[TaskVector], *, scale: float = 1.0) -> torch.Tensor:
    """Merge task vectors by their most important directions, made orthogonal to each other; returns [m, n].

    TSV-M (Gargiulo et al., "Task Singular Vectors", 2025, algorithm 1): of each skill the top min(m, n) / K singular
    directions, but never more than its factors have: the others are rounding noise.
    """
    share = min(common_shape(vectors)) // len(vectors)
    if not share:
        raise InputError(
            "tsv",
            got=f"{len(vectors)} skills for a weight of {common_shape(vectors)}",
            expected="no more skills than the weight has rows and columns",
            fix="Merge fewer skills, or by another method.",
        )
    parts = [tuple(part[:share] for part in (left.T, values, right)) for left, values, right in _svds(vectors)]
    left, values, right = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return scale * (_orthogonal(left.T) * values) @ _orthogonal(right)


def knots(
    vectors: Sequence[TaskVector], *, keep: float = 1.0, aggregate: str = "mean", scale: float = 1.0
) -> torch.Tensor:
    """Merge task vectors in a basis that they share; returns [m, n].

    KnOTS with TIES (Stoica et al., "Model Merging with SVD to Tie the Knots", 2025, section 4): the changes beside each
    other are U S [V_1 .. V_K], and it is the V_k that are merged. Their plain sum would be task arithmetic. Of each
    V_k the `keep` largest fraction of entries takes part.
    """
    columns = common_shape(vectors)[1]
    basis, right_factor = torch.linalg.qr(torch.cat([each.up for each in vectors], 1))
    pieces = right_factor.split([each.up.shape[1] for each in vectors], dim=1)
    side_by_side = torch.cat([piece @ each.down for piece, each in zip(pieces, vectors, strict=True)], 1)
    left, values, right = torch.linalg.svd(side_by_side, full_matrices=False)
    left, values, right = _nonzero_directions(left, values, right)
    if not len(values):
        return torch.zeros(len(basis), columns)  # no skill has changed anything
    shared = right.split(columns, dim=1)
    thresholds = [_threshold(each, keep) for each in shared]
    merged = ties(shared, thresholds=thresholds, aggregate=aggregate)
    return scale * (basis @ left * values) @ merged


def iso_c(vectors: Sequence[TaskVector], *, scale: float = 1.0) -> torch.Tensor:
    """Return the sum of task vectors with all its singular values made equal, [m, n].

    Iso-C (Marczak et al., "No Task Left Behind", 2025, section 4.1), over the directions that the factors have: flat
    over all, the empty ones would get the mean too.
    """
    left, values, right = _nonzero_directions(*sum_vectors(vectors).svd())
    return scale * _mean(values) * left @ right


def iso_cts(vectors: Sequence[TaskVector], *, common: float = 0.8, scale: float = 1.0) -> torch.Tensor:
    """Merge as `iso_c`, but leave room for directions that only one skill needs; returns [m, n].

    Iso-CTS (the same paper, section 4.2): the first `common` fraction of directions are the sum's, the others come in
    equal shares from what each skill has beyond them. Raises InputError unless 0 < common <= 1.
    """
    if not 0 < common <= 1:
        raise InputError("iso-cts: common", got=common, expected="above 0, at most 1", fix="The paper takes 0.8.")
    left, values, right = _nonzero_directions(*sum_vectors(vectors).svd())
    share = int((1 - common) * len(values)) // len(vectors)
    shared = len(values) - share * len(vectors)
    basis = left[:, :shared]
    parts = [(basis.T, values[:shared], right[:shared])]
    for vector in vectors:
        own = TaskVector(vector.up - basis @ (basis.T @ vector.up), vector.down)
        own_left, own_values, own_right = own.svd()
        parts.append((own_left.T[:share], own_values[:share], own_right[:share]))
    rows, singular_values, columns = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return scale * _mean(singular_values) * _orthogonal(rows.T) @ _orthogonal(columns)


def _svds(vectors: Sequence[TaskVector]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return [vector.svd() for vector in vectors]


def _nonzero_directions(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leave out directions that are there by rounding alone."""
    nonzero = values > values[0] * 1e-6
    return left[:, nonzero], values[nonzero], right[nonzero]


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean, 0 of nothing."""
    return values.sum() / max(len(values), 1)


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrix with orthonormal rows or columns: the polar factor."""
    left, _, right = torch.linalg.svd(vectors, full_matrices=False)
    return left @ right


def _threshold(part: torch.Tensor, keep: float) -> float:
    if not 0 < keep <= 1:
        raise InputError("knots: keep", got=keep, expected="above 0, at most 1", fix="TIES keeps 0.2.")
    magnitudes = part.abs().flatten()
    return magnitudes.topk(max(1, round(keep * len(magnitudes)))).values[-1].item()
