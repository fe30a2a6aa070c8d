"""Feature-wise linear modulation (FiLM): the instruction scales and shifts features (Perez et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn

type Modulation = tuple[torch.Tensor, torch.Tensor]
"""Scale and shift of features, each [B, width]."""


class FiLM(nn.Module):
    """A linear layer that maps a condition to scale and shift (Perez et al., 2018, section 2).

    Compute the modulation once per instruction: it does not depend on the image. The layer starts at zero, so that the
    modulation is the identity at the start of training; CogVLA starts it at random.

    Args:
        condition_width: width C of the condition.
        width: width of the features.
    """

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition_width, 2 * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: torch.Tensor) -> Modulation:
        """Map a condition [B, C] to scale and shift, each [B, width]."""
        scale, shift = self.project(condition).chunk(2, dim=-1)  # [B, width] each
        return scale, shift


def modulate(features: torch.Tensor, modulation: Modulation) -> torch.Tensor:
    """Return `features * (1 + scale) + shift` for features [B, ..., width]."""
    shape = (len(features), *[1] * (features.ndim - 2), features.shape[-1])
    scale, shift = (part.reshape(shape) for part in modulation)  # [B, 1, ..., width]
    return features * (1 + scale) + shift
