"""The slot head: a small residual MLP that reads a chunk of actions from the trunk's action slots."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SlotHead(nn.Module):
    """Map the hidden states of a step's slots to its action: OpenVLA-OFT's residual head for L1 regression.

    Kim et al., 2025 (arXiv 2502.19645). A step has one slot, or one for each of its elements; their states are
    concatenated.

    Args:
        trunk: Width of the hidden states, D.
        slots_per_step: Slots of a step.
        width: Width of the residual blocks.
        blocks: Residual blocks.
        actions: Dimensions of an action, A.
    """

    def __init__(self, *, trunk: int, slots_per_step: int, width: int, blocks: int, actions: int) -> None:
        super().__init__()
        self.slots_per_step = slots_per_step
        self.enter_norm = nn.LayerNorm(slots_per_step * trunk)
        self.enter = nn.Linear(slots_per_step * trunk, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, actions)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map the slots' hidden states [B, T * slots_per_step, D] to normalized actions [B, T, A]."""
        steps = states.reshape(len(states), -1, self.enter.in_features)  # [B, T, slots_per_step * D]
        features = functional.relu(self.enter(self.enter_norm(steps)))  # [B, T, width]
        for block in self.blocks:
            features = features + functional.relu(block(features))
        return self.head(self.norm(features))
