"""A tower: one view's picture becomes a few aggregation tokens that the instruction has steered.

After CogVLA's encoder-FiLM based aggregation routing (EFA; section 3 of the paper): FiLM in every block, learnable
aggregation tokens that gather the patches by full attention, only those tokens leave.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..kernels.block_sparse import attention
from .film import FiLM
from .pointing import Pointing
from .stem import STRIDE, ConvolutionalStem


class TowerBlock(nn.Module):
    """A pre-norm transformer block whose residual stream FiLM modulates between attention and feed-forward."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.film = FiLM(condition, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map tokens [B, tokens, width] to tokens of the same shape."""
        batch, count, width = tokens.shape
        projected = self.query_key_value(self.attention_norm(tokens))
        query, key, value = projected.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        gathered = attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = self.film(tokens + self.output(gathered), condition)
        return tokens + self.contract(functional.gelu(self.expand(self.feed_forward_norm(tokens))))

    def attention_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return how much each token attends to each, averaged over heads: [B, tokens, tokens]; for inspection."""
        projected = self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key = projected[:, :, 0].transpose(1, 2), projected[:, :, 1].transpose(1, 2)
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)


class Tower(nn.Module):
    """A small tower, trained from scratch: convolutional stem, pointing, transformer blocks, aggregation tokens.

    Leaves `aggregation_tokens` tokens a view, of which the first carries what the pointing maps found.
    """

    def __init__(
        self,
        *,
        image_size: int,
        stem_width: int,
        stem_blocks: int,
        points: int,
        width: int,
        blocks: int,
        heads: int,
        aggregation_tokens: int,
        condition: int,
        output: int,
    ) -> None:
        super().__init__()
        cells = image_size // STRIDE // 2
        self.stem = ConvolutionalStem(stem_width, condition, stem_blocks)
        self.pointing = Pointing(stem_width, points, width)
        self.reduce = nn.Conv2d(stem_width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, cells * cells, width))
        self.aggregation = nn.Parameter(0.02 * torch.randn(1, aggregation_tokens - 1, width))
        self.blocks = nn.ModuleList(TowerBlock(width, heads, condition) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, output)

    def forward(
        self, pictures: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map pictures [B, 3, H, W] in -1 to 1 and condition [B, C] to aggregation tokens [B, M, output].

        Also returns the pointing positions [B, points, 2] and logits [B, points, H/8, W/8].
        """
        grid = self.stem(pictures, condition)
        pointed, positions, logits = self.pointing(grid)
        patches = self.reduce(grid.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2) + self.positions
        aggregation = self.aggregation.expand(len(pictures), -1, -1)
        tokens = torch.cat([patches, pointed[:, None].to(patches.dtype), aggregation], dim=1)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.project(self.norm(tokens[:, patches.shape[1] :])), positions, logits
