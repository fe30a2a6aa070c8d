"""The slots' read-out: a chunk of actions straight off the trunk's action slots, by a small residual head."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SlotHead(nn.Module):
    """Turn the states of a step's slots into its action: OpenVLA-OFT's residual head for L1 regression.

    Kim et al., 2025. A step has one slot, or one for each of its elements; their states are read side by side.
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
        """Map the slots' states [B, T*slots_per_step, D] to normalised actions [B, T, A]."""
        batch = len(states)
        features = functional.relu(self.enter(self.enter_norm(states.reshape(batch, -1, self.enter.in_features))))
        for block in self.blocks:
            features = features + functional.relu(block(features))
        return self.head(self.norm(features))
