"""The expert: cross-attention blocks that decode a chunk of actions from the trunk's hidden states.

As in MergeVLA (section 4) the actions have no self-attention: it spreads task-specific features over the depth of the
expert, and such experts cannot be merged. Each block attends to one trunk layer, in two streams with one softmax: the
visual tokens, whose logits a learned gate scales, and state and action slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ....kernels.plan import AttentionPlan
from ..attention import attend, check_head_size, full_attention_plan


class ExpertBlock(nn.Module):
    """Cross-attention to one trunk layer, then an MLP, both residual.

    Args:
        width: Width of the expert.
        trunk: Width of the trunk's hidden states, D.
        heads: Attention heads.
    """

    def __init__(self, width: int, trunk: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.seen = nn.Linear(trunk, 2 * width)
        self.decided = nn.Linear(trunk, 2 * width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(
        self,
        actions: torch.Tensor,
        visual_states: torch.Tensor,
        slot_states: torch.Tensor,
        plan: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """Update the actions of a chunk.

        Args:
            actions: Hidden states of the actions [B, T, width].
            visual_states: The layer's visual tokens [B, N, D].
            slot_states: The layer's state and slots [B, n, D].
            plan: Plan of this package's operator, which splits the many keys of the few queries; None for PyTorch.

        Returns:
            Hidden states of the actions [B, T, width].
        """
        visual_key, visual_value = self.seen(visual_states).chunk(2, dim=-1)  # each [B, N, width]
        slot_key, slot_value = self.decided(slot_states).chunk(2, dim=-1)  # each [B, n, width]
        # The gate scales logits, not values: from 0 (uniform attention) to 2 (sharp), 1 at the start.
        key = torch.cat([2 * torch.sigmoid(self.gate) * visual_key, slot_key], dim=1)  # [B, N + n, width]
        value = torch.cat([visual_value, slot_value], dim=1)
        query = self.query(self.query_norm(actions))  # [B, T, width]
        attention_output = attend(self._split(query), self._split(key), self._split(value), plan)  # [B, heads, T, d]
        actions = actions + self.output(attention_output.transpose(1, 2).flatten(2))
        return actions + self.contract(functional.gelu(self.expand(self.feed_forward_norm(actions))))

    def _split(self, part: torch.Tensor) -> torch.Tensor:
        return part.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Expert(nn.Module):
    """Decode a whole chunk at once: learned queries, one block for each of the trunk's last layers, a linear head.

    Args:
        chunk: Steps of a chunk, T.
        width: Width of the expert.
        trunk: Width of the trunk's hidden states, D.
        blocks: Blocks, each of which reads one trunk layer.
        heads: Attention heads.
        actions: Dimensions of an action, A.
        kernels: `Architecture.kernels`.
    """

    def __init__(
        self, *, chunk: int, width: int, trunk: int, blocks: int, heads: int, actions: int, kernels: str = "torch"
    ) -> None:
        super().__init__()
        self.uses_plan = kernels == "saccade"
        if self.uses_plan:
            check_head_size("expert", width // heads)
        self.queries = nn.Parameter(0.02 * torch.randn(1, chunk, width))
        self.blocks = nn.ModuleList(ExpertBlock(width, trunk, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, actions)

    def plan(self, batch: int, tokens: int) -> AttentionPlan | None:
        """Return the plan by which every action attends to all N + n = `tokens` that a block reads.

        It serves all blocks and decisions of a batch of this size; None where PyTorch attends.
        """
        if not self.uses_plan:
            return None
        return full_attention_plan(batch, self.queries.shape[1], tokens, self.queries.device)

    def forward(
        self,
        visual_states: Sequence[torch.Tensor],
        slot_states: Sequence[torch.Tensor],
        plan: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """Decode the hidden states of each block's trunk layer.

        Args:
            visual_states: Visual tokens of each layer, [B, N, D].
            slot_states: State and slots of each layer, [B, n, D].
            plan: The result of `plan`.

        Returns:
            Normalized actions [B, T, A].
        """
        actions = self.queries.expand(len(visual_states[0]), -1, -1)  # [B, T, width]
        for block, visual, slots in zip(self.blocks, visual_states, slot_states, strict=True):
            actions = block(actions, visual, slots, plan)
        return self.head(self.norm(actions))
