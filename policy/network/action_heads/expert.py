"""The expert: cross-attention-only blocks that turn the trunk's hidden states into a chunk of actions.

After MergeVLA: no self-attention among the actions, because it spreads one task's habits over the depth of the expert
and makes experts impossible to merge. Each block reads one trunk layer, in two streams with one softmax: what was seen,
and what was decided (state and action slots), the former scaled by a learned gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ....kernels.plan import AttentionPlan
from ..attention import attend, check_head_size, full_attention_plan


class ExpertBlock(nn.Module):
    """Cross-attention to one trunk layer, then a feed-forward, both residual."""

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
        self, actions: torch.Tensor, seen: torch.Tensor, decided: torch.Tensor, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Map actions [B, T, width] with `seen` [B, N, D] and `decided` [B, n, D] to actions of the same shape.

        With a `plan` the package's operator attends: it splits the many keys that the few queries see.
        """
        visual_key, visual_value = self.seen(seen).chunk(2, dim=-1)
        slot_key, slot_value = self.decided(decided).chunk(2, dim=-1)
        # The gate scales logits, not values: between 0 (blind averaging) and 2 (sharp), 1 at the start.
        key = torch.cat([2 * torch.sigmoid(self.gate) * visual_key, slot_key], dim=1)
        value = torch.cat([visual_value, slot_value], dim=1)
        attention_output = attend(
            *(self._split(part) for part in (self.query(self.query_norm(actions)), key, value)), plan
        )
        actions = actions + self.output(attention_output.transpose(1, 2).flatten(2))
        return actions + self.contract(functional.gelu(self.expand(self.feed_forward_norm(actions))))

    def _split(self, part: torch.Tensor) -> torch.Tensor:
        return part.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Expert(nn.Module):
    """Decide a whole chunk at once: learned queries, one block for each of the trunk's last layers, a linear head."""

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
        """Return the plan by which every action of a chunk sees all `tokens` that a block reads, N + n.

        It serves all blocks and decisions of a batch; None where PyTorch attends.
        """
        if not self.uses_plan:
            return None
        return full_attention_plan(batch, self.queries.shape[1], tokens, self.queries.device)

    def forward(
        self, seen: Sequence[torch.Tensor], decided: Sequence[torch.Tensor], plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Map the states of each block's trunk layer to normalised actions [B, T, A].

        `seen`: the visual tokens, each [B, N, D]; `decided`: state and slots, each [B, n, D]; `plan`: see `plan`.
        """
        actions = self.queries.expand(len(seen[0]), -1, -1)
        for block, visual, slots in zip(self.blocks, seen, decided, strict=True):
            actions = block(actions, visual, slots, plan)
        return self.head(self.norm(actions))
