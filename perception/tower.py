"""A tower: one view's picture becomes a few aggregation tokens that the instruction has steered.

After CogVLA's encoder-FiLM based aggregation routing (EFA; section 3 of the paper): FiLM in every block, learnable
aggregation tokens that gather the patches by full attention, only those tokens leave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ..kernels.block_sparse import attention
from .film import FiLM, Modulation, modulate
from .pointing import Pointing
from .stem import STRIDE, ConvolutionalStem
from .tower_output import TowerOutput


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

    def forward(self, tokens: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Map tokens [B, tokens, width] to tokens of the same shape."""
        batch, count, width = tokens.shape
        projected = self.query_key_value(self.attention_norm(tokens))
        query, key, value = projected.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention_output = attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = modulate(tokens + self.output(attention_output), modulation)
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
        self.tokens = aggregation_tokens
        cells = image_size // STRIDE // 2
        self.stem = ConvolutionalStem(stem_width, condition, stem_blocks)
        self.pointing = Pointing(stem_width, points, width)
        self.reduce = nn.Conv2d(stem_width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, cells * cells, width))
        self.aggregation = nn.Parameter(0.02 * torch.randn(1, aggregation_tokens - 1, width))
        self.blocks = nn.ModuleList(TowerBlock(width, heads, condition) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, output)

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """Return the modulation of every block, the stem's first, under a condition [B, C]."""
        return [*self.stem.modulations(condition), *(block.film(condition) for block in self.blocks)]

    def forward(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> TowerOutput:
        """Map pictures [B, 3, H, W] of 0 to 255 to M aggregation tokens, pointing positions and logits."""
        tokens, positions, logits = self._tokens_before_last_block(images, modulations)
        tokens = self.blocks[-1](tokens, modulations[-1])
        return TowerOutput(self.project(self.norm(tokens[:, -self.tokens :])), positions, logits)

    def attention_map(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Return how much each token that leaves attends to each patch in the last block, [B, M, P]; for inspection."""
        tokens = self._tokens_before_last_block(images, modulations)[0]
        return self.blocks[-1].attention_map(tokens)[:, -self.tokens :, : -self.tokens]

    def _tokens_before_last_block(
        self, images: torch.Tensor, modulations: Sequence[Modulation]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tokens that enter the last block, patches first, with what the pointing maps found."""
        stem = len(self.stem.blocks)
        grid = self.stem(images.div(127.5).sub(1.0), modulations[:stem])
        pointing_token, positions, logits = self.pointing(grid)
        patches = self.reduce(grid.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2) + self.positions
        aggregation = self.aggregation.expand(len(images), -1, -1)
        tokens = torch.cat([patches, pointing_token[:, None].to(patches.dtype), aggregation], dim=1)
        for block, modulation in zip(self.blocks[:-1], modulations[stem:-1], strict=True):
            tokens = block(tokens, modulation)
        return tokens, positions, logits
