"""Feature-wise linear modulation: the instruction scales and shifts features (Perez et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn

type Modulation = tuple[torch.Tensor, torch.Tensor]
"""Scale and shift of features, each [B, width]."""


class FiLM(nn.Module):
    """Make the modulation of features from a condition; once for an instruction, however many pictures follow.

    It starts as the identity, so that a tower is first itself and then learns to listen.
    """

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: torch.Tensor) -> Modulation:
        """Map a condition [B, C] to scale and shift, each [B, width]."""
        scale, shift = self.project(condition).chunk(2, dim=-1)
        return scale, shift


def modulate(features: torch.Tensor, modulation: Modulation) -> torch.Tensor:
    """Return `features * (1 + scale) + shift` for features [B, ..., width]."""
    shape = (len(features), *[1] * (features.ndim - 2), features.shape[-1])
    scale, shift = (part.reshape(shape) for part in modulation)
    return features * (1 + scale) + shift
