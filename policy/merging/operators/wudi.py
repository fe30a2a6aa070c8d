"""WUDI: the merged change that disturbs no skill in the directions in which that skill's inputs lie.

Cheng et al., "Whoever Started the Interference Should End It" (2025): minimise over tau the sum, over skills, of
||(tau - tau_k) tau_k^T||^2 / ||tau_k||^2. The paper descends from their sum by gradients, for 300 steps that are too
few to arrive; it is a quadratic with a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .task_vector import TaskVector, common_shape


def wudi(vectors: Sequence[TaskVector], *, ridge: float = 1.0, scale: float = 1.0) -> torch.Tensor:
    """Return the merged change [m, n]; skills that changed nothing have no say.

    With G_k = tau_k^T tau_k / ||tau_k||^2, S = sum tau_k and r = ridge · the mean eigenvalue of sum G_k, it is

        (sum tau_k G_k + r S) (sum G_k + r)^-1,

    which minimises the interference and r ||tau - S||^2, solved in float64 in the space that the factors span, of at
    most the ranks' sum. Without a `ridge` it is the exact minimiser of least norm, which pays for directions that are
    all but shared with changes many times the size of any skill's.
    """
    rows, columns = common_shape(vectors)
    nonzero_vectors = [vector for vector in vectors if vector.inner_product(vector) > 0]
    if not nonzero_vectors:
        return torch.zeros(rows, columns)
    basis, _ = torch.linalg.qr(torch.cat([each.down for each in nonzero_vectors]).T.double())
    rank = basis.shape[1]
    weighted_sum, total = torch.zeros(2, rows, rank, dtype=torch.float64)
    inputs = torch.zeros(rank, rank, dtype=torch.float64)
    for vector in nonzero_vectors:
        factor_in_basis = vector.down.double() @ basis
        delta = vector.up.double() @ factor_in_basis
        own = delta.T @ delta / delta.square().sum()
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
    return scale * (merged @ basis.T).float()
