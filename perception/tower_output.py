"""The output of a view's vision tower or towers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TowerOutput:
    """The visual tokens of one view, and the pointing of a small tower.

    Attributes:
        tokens: [B, M, D].
        positions: [B, points, 2], fractions of the image; None without pointing.
        logits: [B, points, rows, columns], the maps of the positions; None without pointing.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    logits: torch.Tensor | None = None
