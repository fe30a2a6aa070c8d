"""Fusion: the tokens of several towers become one sequence of the trunk's width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class GatedFusion(nn.Module):
    """Project each tower's tokens by itself and add them, weighted by how much the instruction trusts each tower.

    After CogVLA's aggregation of experts (section 3 of the paper). A lone tower needs no gate and has none.
    """

    def __init__(self, widths: Sequence[int], condition: int, output: int) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(width, output), nn.GELU(), nn.Linear(output, output)) for width in widths
        )
        self.router = None
        if len(widths) > 1:
            self.router = nn.Sequential(
                nn.Linear(condition, condition), nn.GELU(), nn.Linear(condition, len(widths)), nn.Softmax(dim=-1)
            )

    def gate(self, condition: torch.Tensor) -> torch.Tensor:
        """Map a condition [B, C] to the weights of the towers [B, towers], which sum to one."""
        return condition.new_ones(len(condition), 1) if self.router is None else self.router(condition)

    def forward(self, tokens: Sequence[torch.Tensor], gate: torch.Tensor) -> torch.Tensor:
        """Map each tower's tokens [B, M, width] and the gate [B, towers] to tokens [B, M, output]."""
        weights = gate.unbind(1)
        parts = zip(self.projectors, tokens, weights, strict=True)
        return sum(project(part) * weight[:, None, None].to(part.dtype) for project, part, weight in parts)


class ConcatenatedFusion(nn.Module):
    """Concatenate the towers' tokens along their channels and project them, whatever the instruction.

    The projector of Prismatic and OpenVLA, with its layers, so that its weights fit: three for several towers, of
    which the first widens fourfold, and two for a lone one.
    """

    def __init__(self, widths: Sequence[int], output: int) -> None:
        super().__init__()
        width = sum(widths)
        widening = [nn.Linear(width, 4 * width), nn.GELU()] if len(widths) > 1 else []
        width = 4 * width if widening else width
        self.project = nn.Sequential(*widening, nn.Linear(width, output), nn.GELU(), nn.Linear(output, output))

    def gate(self, condition: torch.Tensor) -> None:
        """Return None: there is nothing for a condition [B, C] to weigh."""

    def forward(self, tokens: Sequence[torch.Tensor], gate: torch.Tensor | None = None) -> torch.Tensor:
        """Map each tower's tokens [B, M, width] to tokens [B, M, output]."""
        return self.project(torch.cat(tuple(tokens), dim=-1))
