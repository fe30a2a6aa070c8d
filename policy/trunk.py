"""The trunk: a Hugging Face decoder run layer by layer, with visual tokens pruned on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel, PretrainedConfig

from ..kernels.block_sparse import attention, interval_mask
from ..perception.pruning import PruningRouter, select
from .layout import TokenLayout


ATTENTION = "saccade_block_sparse"


def decoder_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Serve a Hugging Face decoder layer with our attention, in the signature of its attention interface.

    Grouped keys and values [B, groups, S, d] are repeated for the query's heads; the scale is the usual one.
    """
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (part.repeat_interleave(repeat, dim=1) for part in (key, value))
    return attention(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


@dataclass
class TrunkOutput:
    """Hidden states after every layer, each [B, S, D], and which visual tokens each layer worked on, [B, kept]."""

    hidden: list[torch.Tensor]
    kept: list[torch.Tensor | None]


class Trunk(nn.Module):
    """Run a decoder over the layout's sequence.

    A layer that prunes works on the visual tokens that its router picks and on everything else; the others pass by
    unchanged, keep their positions, and may return in the next layer. What a picked token gains is scaled by its
    gate, so that the router learns from the loss.
    """

    def __init__(
        self,
        configuration: PretrainedConfig,
        layout: TokenLayout,
        *,
        views: int,
        keep: Sequence[int],
        condition: int,
    ) -> None:
        super().__init__()
        AttentionInterface.register(ATTENTION, decoder_attention)
        self.decoder = AutoModel.from_config(configuration, attn_implementation=ATTENTION)
        self.layout, self.views, self.keep = layout, views, tuple(keep)
        tokens = layout.visual // views
        self.routers = nn.ModuleDict(
            {
                str(layer): PruningRouter(configuration.hidden_size, condition)
                for layer, kept in enumerate(keep)
                if kept < tokens
            }
        )

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed text tokens [B, L] as [B, L, D]."""
        return self.decoder.embed_tokens(tokens)

    def forward(self, sequence: torch.Tensor, text_valid: torch.Tensor, condition: torch.Tensor) -> TrunkOutput:
        """Run over the sequence [B, S, D]; `text_valid` boolean [B, L], `condition` [B, C]."""
        batch, length, _ = sequence.shape
        visual = self.layout.visual
        positions = torch.arange(length, device=sequence.device).expand(batch, -1)
        cosine, sine = self.decoder.rotary_emb(sequence, position_ids=positions)
        high, level = self.layout.coupled_levels(text_valid)
        high = high.expand(batch, -1)
        low = torch.zeros_like(high)
        everything = interval_mask(low, high, level)[:, None]
        hidden, kept = [], []
        for number, layer in enumerate(self.decoder.layers):
            if str(number) not in self.routers:
                sequence = layer(
                    sequence, attention_mask=everything, position_ids=positions, position_embeddings=(cosine, sine)
                )
                kept.append(None)
            else:
                scores = self.routers[str(number)](sequence[:, :visual], condition)
                places = select(scores, self.views, self.keep[number])
                rest = torch.arange(visual, length, device=sequence.device).expand(batch, -1)
                working = torch.cat([places, rest], dim=1)
                wide = working[..., None]
                given = sequence.gather(1, wide.expand(-1, -1, sequence.shape[-1]))
                rotation = tuple(
                    table.expand(batch, -1, -1).gather(1, wide.expand(-1, -1, table.shape[-1]))
                    for table in (cosine, sine)
                )
                bound, seen = high.gather(1, working), level.gather(1, working)
                mask = interval_mask(torch.zeros_like(bound), bound, seen)[:, None]
                result = layer(given, attention_mask=mask, position_ids=working, position_embeddings=rotation)
                gate = torch.ones(batch, working.shape[1], 1, dtype=result.dtype, device=result.device)
                gate[:, : places.shape[1], 0] = 2 * scores.gather(1, places).sigmoid().to(result.dtype)
                result = given + gate * (result - given)
                sequence = sequence.scatter(1, wide.expand(-1, -1, sequence.shape[-1]), result.to(sequence.dtype))
                kept.append(places)
            hidden.append(sequence)
        hidden[-1] = self.decoder.norm(hidden[-1])
        return TrunkOutput(hidden, kept)
