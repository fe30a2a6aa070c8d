"""A small tower: it maps one view's image to a few aggregation tokens, conditioned by the instruction.

After CogVLA's encoder-FiLM based aggregation routing (EFA; arXiv 2508.21046, section 3): FiLM in every block, and
learnable aggregation tokens that attend to all patches; only these tokens are returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ..kernels.block_sparse import attention
from .film import FiLM, Modulation, modulate
from .pointing import Pointing
from .stem import STRIDE, ConvolutionalStem
from .tower_output import TowerOutput


class TowerBlock(nn.Module):
    """A pre-norm transformer block with FiLM on the residual stream, between attention and feed-forward.

    CogVLA's EFA block (arXiv 2508.21046, section 3).

    Args:
        width: width of the tokens.
        heads: attention heads.
        condition_width: width C of the condition.
    """

    def __init__(self, width: int, heads: int, condition_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.film = FiLM(condition_width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Map tokens [B, tokens, width] to tokens of the same shape."""
        batch, count, width = tokens.shape
        projected = self.query_key_value(self.attention_norm(tokens))
        # [B, heads, tokens, width / heads] each
        query, key, value = projected.view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention_output = attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = modulate(tokens + self.output(attention_output), modulation)
        return tokens + self.contract(functional.gelu(self.expand(self.feed_forward_norm(tokens))))

    def attention_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the attention weights [B, tokens, tokens], averaged over heads; for inspection."""
        projected = self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key = projected[:, :, 0].transpose(1, 2), projected[:, :, 1].transpose(1, 2)
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)


class Tower(nn.Module):
    """A small tower, trained from scratch: convolutional stem, pointing, transformer blocks, aggregation tokens.

    After CogVLA's EFA (arXiv 2508.21046, section 3), with a stem and pointing of its own.

    Args:
        image_size: height and width of an image in pixels.
        stem_width: width of the stem's features.
        stem_blocks: residual blocks of the stem.
        points: maps of the pointing.
        width: width of the transformer.
        blocks: transformer blocks.
        heads: attention heads.
        aggregation_tokens: tokens M of a view; the first one is the pointing token.
        condition_width: width C of the condition.
        output_width: width of the returned tokens.
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
        condition_width: int,
        output_width: int,
    ) -> None:
        super().__init__()
        self.tokens = aggregation_tokens
        cells = image_size // STRIDE // 2
        self.stem = ConvolutionalStem(stem_width, condition_width, stem_blocks)
        self.pointing = Pointing(stem_width, points, width)
        self.reduce = nn.Conv2d(stem_width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, cells * cells, width))
        self.aggregation = nn.Parameter(0.02 * torch.randn(1, aggregation_tokens - 1, width))
        self.blocks = nn.ModuleList(TowerBlock(width, heads, condition_width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, output_width)

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """Return the modulation of each block under a condition [B, C], the stem's blocks first."""
        blocks = cast("Iterable[TowerBlock]", self.blocks)
        return [*self.stem.modulations(condition), *(block.film(condition) for block in blocks)]

    def forward(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> TowerOutput:
        """Map images [B, 3, H, W] in 0 to 255 to M aggregation tokens, pointing positions and logits."""
        tokens, positions, logits = self._tokens_before_last_block(images, modulations)
        tokens = self.blocks[-1](tokens, modulations[-1])
        return TowerOutput(self.project(self.norm(tokens[:, -self.tokens :])), positions, logits)

    def attention_map(self, images: torch.Tensor, modulations: Sequence[Modulation]) -> torch.Tensor:
        """Return the attention weights of the M returned tokens over patches in the last block, [B, M, P]."""
        tokens = self._tokens_before_last_block(images, modulations)[0]
        last_block = cast("TowerBlock", self.blocks[-1])
        return last_block.attention_map(tokens)[:, -self.tokens :, : -self.tokens]

    def _tokens_before_last_block(
        self, images: torch.Tensor, modulations: Sequence[Modulation]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tokens that enter the last block, patches first, and the pointing's positions and logits."""
        stem = len(self.stem.blocks)
        grid = self.stem(images.div(127.5).sub(1.0), modulations[:stem])  # [B, rows, columns, stem_width]
        pointing_token, positions, logits = self.pointing(grid)
        patches = self.reduce(grid.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2) + self.positions  # [B, P, width]
        aggregation = self.aggregation.expand(len(images), -1, -1)
        tokens = torch.cat(
            [patches, pointing_token[:, None].to(patches.dtype), aggregation], dim=1
        )  # [B, P + M, width]
        for block, modulation in zip(self.blocks[:-1], modulations[stem:-1], strict=True):
            tokens = block(tokens, modulation)
        return tokens, positions, logits
