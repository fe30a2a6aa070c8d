"""Feature-wise linear modulation: the instruction scales and shifts features (Perez et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn


class FiLM(nn.Module):
    """Modulate features by a condition: `x * (1 + scale) + shift`.

    It starts as the identity, so that a tower is first itself and then learns to listen.
    """

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, features: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Modulate `features` [B, ..., width] by `condition` [B, C]."""
        shape = (len(features), *[1] * (features.ndim - 2), features.shape[-1])
        scale, shift = (part.reshape(shape) for part in self.project(condition).chunk(2, dim=-1))
        return features * (1 + scale) + shift
