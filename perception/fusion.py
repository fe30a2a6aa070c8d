"""Fusion of the tokens of several towers into one sequence of the trunk's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn


class GatedFusion(nn.Module):
    """Project each tower's tokens and sum them, weighted by an instruction-conditioned gate.

    After CogVLA's aggregation of experts (arXiv 2508.21046, section 3). A single tower has no gate.

    Args:
        widths: the width of each tower's tokens.
        condition_width: width C of the condition.
        output_width: width of the fused tokens.
    """

    def __init__(self, widths: Sequence[int], condition_width: int, output_width: int) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(width, output_width), nn.GELU(), nn.Linear(output_width, output_width))
            for width in widths
        )
        self.router = None
        if len(widths) > 1:
            self.router = nn.Sequential(
                nn.Linear(condition_width, condition_width),
                nn.GELU(),
                nn.Linear(condition_width, len(widths)),
                nn.Softmax(dim=-1),
            )

    def gate(self, condition: torch.Tensor) -> torch.Tensor:
        """Map a condition [B, C] to the towers' weights [B, towers], which sum to one."""
        return condition.new_ones(len(condition), 1) if self.router is None else self.router(condition)

    def forward(self, tokens: Sequence[torch.Tensor], gate: torch.Tensor) -> torch.Tensor:
        """Map each tower's tokens [B, M, width] and the gate [B, towers] to tokens [B, M, output_width]."""
        weights = gate.unbind(1)  # [B] each
        parts = zip(self.projectors, tokens, weights, strict=True)
        weighted = (project(part) * weight[:, None, None].to(part.dtype) for project, part, weight in parts)
        return cast("torch.Tensor", sum(weighted))  # [B, M, output_width]


class ConcatenatedFusion(nn.Module):
    """Concatenate the towers' tokens along the channels and project them, independently of the instruction.

    This is the projector of Prismatic (Karamcheti et al., 2024) and OpenVLA (Kim et al., 2024), with the same layers,
    so that their weights fit: three layers for several towers, of which the first is four times as wide, and two for
    one tower.

    Args:
        widths: the width of each tower's tokens.
        output_width: width of the fused tokens.
    """

    def __init__(self, widths: Sequence[int], output_width: int) -> None:
        super().__init__()
        width = sum(widths)
        widening = [nn.Linear(width, 4 * width), nn.GELU()] if len(widths) > 1 else []
        width = 4 * width if widening else width
        self.project = nn.Sequential(
            *widening, nn.Linear(width, output_width), nn.GELU(), nn.Linear(output_width, output_width)
        )

    def gate(self, condition: torch.Tensor) -> None:
        """Return None: this fusion has no gate."""

    def forward(self, tokens: Sequence[torch.Tensor], gate: torch.Tensor | None = None) -> torch.Tensor:
        """Map each tower's tokens [B, M, width] to tokens [B, M, output_width]."""
        return self.project(torch.cat(tuple(tokens), dim=-1))
