"""WUDI: the merged change that disturbs no skill in the directions in which that skill's inputs lie.

Cheng et al., "Whoever Started the Interference Should End It" (2025): minimise over tau the sum, over skills, of
||(tau - tau_k) tau_k^T||^2 / ||tau_k||^2. The paper descends from their sum by gradients, for 300 steps that are too
few to arrive; it is a quadratic with a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .task_vector import TaskVector, same_shape


def wudi(vectors: Sequence[TaskVector], *, ridge: float = 1.0, scale: float = 1.0) -> torch.Tensor:
    """Return the merged change [m, n]; skills that changed nothing have no say.

    With G_k = tau_k^T tau_k / ||tau_k||^2, S = sum tau_k and r = ridge · the mean eigenvalue of sum G_k, it is

        (sum tau_k G_k + r S) (sum G_k + r)^-1,

    which minimises the interference and r ||tau - S||^2, solved in float64 in the space that the factors span, of at
    most the ranks' sum. Without a `ridge` it is the exact minimiser of least norm, which pays for directions that are
    all but shared with changes many times the size of any skill's.
    """
    rows, columns = same_shape(vectors)
    heard = [vector for vector in vectors if vector.inner(vector) > 0]
    if not heard:
        return torch.zeros(rows, columns)
    basis, _ = torch.linalg.qr(torch.cat([each.down for each in heard]).T.double())
    rank = basis.shape[1]
    weighed, total = torch.zeros(2, rows, rank, dtype=torch.float64)
    inputs = torch.zeros(rank, rank, dtype=torch.float64)
    for vector in heard:
        within = vector.down.double() @ basis
        change = vector.up.double() @ within
        own = change.T @ change / change.square().sum()
        weighed += change @ own
        inputs += own
        total += change
    if ridge == 0:
        merged = weighed @ torch.linalg.pinv(inputs, hermitian=True)
    else:
        near = ridge * inputs.trace() / rank
        merged = torch.linalg.solve(
            inputs + near * torch.eye(rank, dtype=torch.float64), weighed + near * total, left=False
        )
    return scale * (merged @ basis.T).float()
