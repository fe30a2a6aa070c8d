"""WUDI: the merged change that disturbs no skill in the directions in which that skill's inputs lie.

Cheng et al., "Whoever Started the Interference Should End It" (2025): minimise over tau the sum, over skills, of
||(tau - tau_k) tau_k^T||^2 / ||tau_k||^2. The paper descends by gradients; it is a quadratic with a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .task_vector import TaskVector, same_shape


def wudi(vectors: Sequence[TaskVector], *, scale: float = 1.0) -> torch.Tensor:
    """Return the exact minimiser of least norm, [m, n]; skills that changed nothing have no say.

    With G_k = tau_k^T tau_k / ||tau_k||^2 it is (sum tau_k G_k) (sum G_k)^+, solved in float64 in the space that the
    factors span, of at most the ranks' sum.
    """
    rows, columns = same_shape(vectors)
    heard = [vector for vector in vectors if vector.inner(vector) > 0]
    if not heard:
        return torch.zeros(rows, columns)
    basis, _ = torch.linalg.qr(torch.cat([each.down for each in heard]).T.double())
    weighed = torch.zeros(rows, basis.shape[1], dtype=torch.float64)
    inputs = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    for vector in heard:
        within = vector.down.double() @ basis
        change = vector.up.double() @ within
        own = change.T @ change / change.square().sum()
        weighed += change @ own
        inputs += own
    return scale * (weighed @ torch.linalg.pinv(inputs, hermitian=True) @ basis.T).float()
