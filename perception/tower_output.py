"""What a vision side hands to the trunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TowerOutput:
    """The visual `tokens` [B, M, D] of one view, and where a small tower points.

    `positions` [B, points, 2] are fractions of the picture, `logits` [B, points, rows, columns] the maps behind them;
    towers without pointing have neither.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    logits: torch.Tensor | None = None
