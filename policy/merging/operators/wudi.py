"""WUDI: the merged change with the least interference with each skill, in the directions of the skill's inputs.

Cheng et al., "Whoever Started the Interference Should End It" (2025), arXiv 2503.08099: minimise over tau the sum, over
skills, of ||(tau - tau_k) tau_k^T||^2 / ||tau_k||^2. The paper starts at the sum of the tau_k and takes 300 gradient
steps, which do not converge. The problem is quadratic and has a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .task_vector import TaskVector, common_shape


def wudi(vectors: Sequence[TaskVector], *, ridge: float = 1.0, scale: float = 1.0) -> torch.Tensor:
    """Return the merged change of one weight; skills with a zero change are ignored.

    With G_k = tau_k^T tau_k / ||tau_k||^2, S = sum tau_k and r = ridge * the mean eigenvalue of sum G_k, it is

        (sum tau_k G_k + r S) (sum G_k + r I)^-1,

    which minimises the interference plus r ||tau - S||^2. It is solved in float64 in the span of the down factors,
    whose dimension q is at most the sum of the ranks.

    Args:
        vectors: Task vectors of K skills, each [m, n].
        ridge: Strength of the regularisation towards the sum. With 0 it is the exact minimiser of least norm; where
            directions of two skills are nearly the same, its entries are many times larger than those of any skill.
        scale: Factor of the result.

    Returns:
        Merged change [m, n].
    """
    rows, columns = common_shape(vectors)
    nonzero_vectors = [vector for vector in vectors if vector.inner_product(vector) > 0]
    if not nonzero_vectors:
        return torch.zeros(rows, columns)
    basis, _ = torch.linalg.qr(torch.cat([each.down for each in nonzero_vectors]).T.double())  # [n, q]
    rank = basis.shape[1]
    weighted_sum, total = torch.zeros(2, rows, rank, dtype=torch.float64)  # sum tau_k G_k, S: [m, q]
    inputs = torch.zeros(rank, rank, dtype=torch.float64)  # sum G_k: [q, q]
    for vector in nonzero_vectors:
        factor_in_basis = vector.down.double() @ basis  # [r, q]
        delta = vector.up.double() @ factor_in_basis  # tau_k: [m, q]
        own = delta.T @ delta / delta.square().sum()  # G_k: [q, q]
        weighted_sum += delta @ own
        inputs += own
        total += delta
    if ridge == 0:
        merged = weighted_sum @ torch.linalg.pinv(inputs, hermitian=True)
    else:
        ridge_weight = ridge * inputs.trace() / rank
        merged = torch.linalg.solve(
            inputs + ridge_weight * torch.eye(rank, dtype=torch.float64),
            weighted_sum + ridge_weight * total,
            left=False,
        )
    return scale * (merged @ basis.T).float()  # [m, q] @ [q, n]
