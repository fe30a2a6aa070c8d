"""The convolutional stem of a small tower: it maps pixels to a grid of features that the instruction conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from .film import FiLM, Modulation, modulate

STRIDE = 8
"""Pixels per cell of the stem's grid."""


def _convolve(convolution: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    """Convolve channels-last features [B, rows, columns, width]."""
    return convolution(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConditionedBlock(nn.Module):
    """A residual convolution with FiLM (the residual block of Perez et al., 2018, section 3).

    Args:
        width: width of the features.
        condition_width: width C of the condition.
    """

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(width)
        self.film = FiLM(condition_width, width)

    def forward(self, features: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Map features [B, rows, columns, width] to features of the same shape."""
        mixed = functional.gelu(self.mix(features))
        convolved = self.norm(_convolve(self.convolution, mixed))
        return mixed + functional.gelu(modulate(convolved, modulation))


class ConvolutionalStem(nn.Module):
    """A convolutional stem with FiLM, at a stride of 8 pixels.

    When trained from scratch at this size, a few convolutions learn far faster than patches alone: a cube of ten pixels
    must be found, distinguished from a can of the same colour, and located to a fraction of a cell.

    Args:
        width: width of the features.
        condition_width: width C of the condition.
        blocks: number of residual blocks.
    """

    def __init__(self, width: int, condition_width: int, blocks: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width // 2, 4, stride=4)
        self.norm = nn.LayerNorm(width // 2)
        self.reduce = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ConditionedBlock(width, condition_width) for _ in range(blocks))

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """Return the modulation of each block under a condition [B, C]."""
        return [block.film(condition) for block in cast("Iterable[ConditionedBlock]", self.blocks)]

    def forward(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Map images [B, 3, H, W] in -1 to 1 to features [B, H/8, W/8, width]."""
        features = self.patches(images).permute(0, 2, 3, 1)  # [B, H/4, W/4, width/2]
        features = functional.gelu(self.norm(features))
        features = functional.gelu(_convolve(self.reduce, features))  # [B, H/8, W/8, width]
        for block, modulation in zip(self.blocks, modulations, strict=True):
            features = block(features, modulation)
        return features
