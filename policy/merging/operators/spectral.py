"""Merging by singular value decomposition: TSV-M, KnOTS, Iso-C and Iso-CTS, all computed from the LoRA factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....errors import InputError
from .task_vector import TaskVector, common_shape, sum_vectors
from .ties import ties


def task_singular_vectors(vectors: Sequence[TaskVector], *, scale: float = 1.0) -> torch.Tensor:
    """Merge the top singular directions of each skill, made orthogonal to each other (TSV-M).

    Gargiulo et al., "Task Singular Vectors" (2025), algorithm 1: min(m, n) / K directions of each skill, but not more
    than the rank of its factors, because the others are rounding noise.

    Args:
        vectors: Task vectors of K skills, each [m, n].
        scale: Factor of the result.

    Returns:
        Merged change [m, n].

    Raises:
        InputError: There are more skills than rows or columns.
    """
    share = min(common_shape(vectors)) // len(vectors)
    if not share:
        raise InputError(
            "tsv",
            got=f"{len(vectors)} skills for a weight of {common_shape(vectors)}",
            expected="no more skills than the weight has rows and columns",
            fix="Merge fewer skills, or use another method.",
        )
    parts = [tuple(part[:share] for part in (left.T, values, right)) for left, values, right in _svds(vectors)]
    left, values, right = (torch.cat(pieces) for pieces in zip(*parts, strict=True))  # [d, m], [d], [d, n]
    return scale * (_orthogonal(left.T) * values) @ _orthogonal(right)  # [m, d] @ [d, n]


def knots(
    vectors: Sequence[TaskVector], *, keep: float = 1.0, aggregate: str = "mean", scale: float = 1.0
) -> torch.Tensor:
    """Merge task vectors in a shared basis (KnOTS with TIES).

    Stoica et al., "Model Merging with SVD to Tie the Knots" (2025), section 4: the changes side by side are
    U S [V_1 .. V_K], and TIES merges the V_k. Their sum would be task arithmetic.

    Args:
        vectors: Task vectors of K skills, each [m, n].
        keep: Fraction of the entries of each V_k that are kept, the largest first.
        aggregate: How TIES combines entries that agree: "mean", "sum" or "max".
        scale: Factor of the result.

    Returns:
        Merged change [m, n].

    Raises:
        InputError: `keep` is out of range.
    """
    columns = common_shape(vectors)[1]
    # The SVD of the small matrix R D instead of the large one: all changes lie in the span of the up factors.
    basis, right_factor = torch.linalg.qr(torch.cat([each.up for each in vectors], 1))  # [m, q], [q, sum of ranks]
    pieces = right_factor.split([each.up.shape[1] for each in vectors], dim=1)  # K times [q, r]
    side_by_side = torch.cat([piece @ each.down for piece, each in zip(pieces, vectors, strict=True)], 1)  # [q, K n]
    left, values, right = torch.linalg.svd(side_by_side, full_matrices=False)
    left, values, right = _nonzero_directions(left, values, right)
    if not len(values):
        return torch.zeros(len(basis), columns)  # no skill changed this weight
    shared = right.split(columns, dim=1)  # V_k: K times [d, n]
    thresholds = [_threshold(each, keep) for each in shared]
    merged = ties(shared, thresholds=thresholds, aggregate=aggregate)  # [d, n]
    return scale * (basis @ left * values) @ merged  # [m, d] @ [d, n]


def iso_c(vectors: Sequence[TaskVector], *, scale: float = 1.0) -> torch.Tensor:
    """Return the sum of task vectors with all singular values set to their mean (Iso-C).

    Marczak et al., "No Task Left Behind" (2025), section 4.1. Only over the directions with nonzero singular values:
    otherwise empty directions would get the mean too.

    Args:
        vectors: Task vectors of K skills, each [m, n].
        scale: Factor of the result.

    Returns:
        Merged change [m, n].
    """
    left, values, right = _nonzero_directions(*sum_vectors(vectors).svd())
    return scale * _mean(values) * left @ right  # [m, d] @ [d, n]


def iso_cts(vectors: Sequence[TaskVector], *, common: float = 0.8, scale: float = 1.0) -> torch.Tensor:
    """Merge as `iso_c`, but keep directions that only one skill uses (Iso-CTS).

    Marczak et al. (2025), section 4.2: a fraction `common` of the directions comes from the sum. The others come in
    equal shares from the part of each skill that is orthogonal to them.

    Args:
        vectors: Task vectors of K skills, each [m, n].
        common: Fraction of directions from the sum, above 0 and at most 1.
        scale: Factor of the result.

    Returns:
        Merged change [m, n].

    Raises:
        InputError: `common` is out of range.
    """
    if not 0 < common <= 1:
        raise InputError("iso-cts: common", got=common, expected="above 0, at most 1", fix="Use 0.8, as in the paper.")
    left, values, right = _nonzero_directions(*sum_vectors(vectors).svd())
    share = int((1 - common) * len(values)) // len(vectors)
    shared = len(values) - share * len(vectors)
    basis = left[:, :shared]  # [m, c]
    parts = [(basis.T, values[:shared], right[:shared])]
    for vector in vectors:
        own = TaskVector(vector.up - basis @ (basis.T @ vector.up), vector.down)  # without the common directions
        own_left, own_values, own_right = own.svd()
        parts.append((own_left.T[:share], own_values[:share], own_right[:share]))
    rows, singular_values, columns = (torch.cat(pieces) for pieces in zip(*parts, strict=True))  # [d, m], [d], [d, n]
    return scale * _mean(singular_values) * _orthogonal(rows.T) @ _orthogonal(columns)


def _svds(vectors: Sequence[TaskVector]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return [vector.svd() for vector in vectors]


def _nonzero_directions(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drop the directions whose singular values are only rounding noise."""
    nonzero = values > values[0] * 1e-6
    return left[:, nonzero], values[nonzero], right[nonzero]


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean, or 0 without values."""
    return values.sum() / max(len(values), 1)


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """Return the nearest matrix with orthonormal rows or columns, the polar factor; same shape."""
    left, _, right = torch.linalg.svd(vectors, full_matrices=False)
    return left @ right


def _threshold(part: torch.Tensor, keep: float) -> float:
    """Return the smallest magnitude among the fraction `keep` of largest entries."""
    if not 0 < keep <= 1:
        raise InputError("knots: keep", got=keep, expected="above 0, at most 1", fix="Use 0.2, as TIES.")
    magnitudes = part.abs().flatten()
    return magnitudes.topk(max(1, round(keep * len(magnitudes)))).values[-1].item()
