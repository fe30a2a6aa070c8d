"""The trunk: a Hugging Face decoder run layer by layer, with visual tokens pruned on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import AttentionInterface, AutoModel, PretrainedConfig

from ..errors import InputError
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
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Serve a Hugging Face decoder layer with our attention, in the signature of its attention interface.

    Grouped keys and values [B, groups, S, d] are repeated for the query's heads. What else the library hands over
    (caches, indices) has no meaning here; what would change the result and is not done here raises InputError.
    """
    usual = query.shape[-1] ** -0.5
    for name, got, expected in (
        ("scaling", usual if scaling is None else scaling, usual),
        ("dropout", dropout, 0.0),
        ("sliding_window", sliding_window or 0, 0),
        ("softcap", softcap or 0.0, 0.0),
    ):
        if not math.isclose(got, expected, rel_tol=1e-6):
            raise InputError(
                f"trunk attention: {name}", got=got, expected=expected, fix="Choose a decoder with plain attention."
            )
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
    """Run a decoder over the layout's sequence; `keep` says how many tokens of a view each of its layers works on.

    A layer that prunes works on the visual tokens that its router picks and on everything else; the others pass by
    unchanged, keep their positions, and may return in the next layer. What a picked token gains is scaled by its
    gate, so that the router learns from the loss. Raises InputError when `views` or `keep` do not fit.
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
        tokens = layout.visual // views
        if tokens * views != layout.visual:
            raise InputError("trunk: views", got=views, expected=f"a divisor of {layout.visual}", fix="Change either.")
        if len(keep) != configuration.num_hidden_layers or not all(1 <= kept <= tokens for kept in keep):
            raise InputError(
                "trunk: keep",
                got=tuple(keep),
                expected=f"1 to {tokens} tokens of a view for each of {configuration.num_hidden_layers} layers",
                fix="Take it from keep_schedule.",
            )
        AttentionInterface.register(ATTENTION, decoder_attention)
        self.decoder = AutoModel.from_config(configuration, attn_implementation=ATTENTION)
        self.layout, self.views, self.keep = layout, views, tuple(keep)
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
        positions = torch.arange(length, device=sequence.device).expand(batch, -1)
        rotation = self.decoder.rotary_emb(sequence, position_ids=positions)
        high, level = self.layout.coupled_levels(text_valid)
        whole = _Tokens(positions, rotation, high.expand(batch, -1), level)
        hidden, kept = [], []
        for number, layer in enumerate(self.decoder.layers):
            places = None
            if str(number) in self.routers:
                scores = self.routers[str(number)](sequence[:, : self.layout.visual], condition)
                places = select(scores, self.views, self.keep[number])
                gate = 2 * scores.gather(1, places).sigmoid()
                sequence = self._pruned(layer, sequence, whole, places, gate)
            else:
                sequence = whole.through(layer, sequence)
            hidden.append(sequence)
            kept.append(places)
        hidden[-1] = self.decoder.norm(hidden[-1])
        return TrunkOutput(hidden, kept)

    def _pruned(
        self, layer: nn.Module, sequence: torch.Tensor, whole: _Tokens, places: torch.Tensor, gate: torch.Tensor
    ) -> torch.Tensor:
        """Run a layer over the visual tokens at `places` [B, kept] and all that is not visual; the others stay."""
        batch, length, width = sequence.shape
        rest = torch.arange(self.layout.visual, length, device=sequence.device).expand(batch, -1)
        working = torch.cat([places, rest], dim=1)
        index = working[..., None].expand(-1, -1, width)
        given = sequence.gather(1, index)
        result = whole.at(working).through(layer, given)
        gain = torch.ones(*working.shape, 1, dtype=result.dtype, device=result.device)
        gain[:, : places.shape[1], 0] = gate.to(result.dtype)
        result = given + gain * (result - given)
        return sequence.scatter(1, index, result.to(sequence.dtype))


@dataclass(frozen=True)
class _Tokens:
    """Some tokens of the sequence as a decoder layer must know them: where they stand, and who sees whom.

    `positions` [B, n]; `rotation`: tables [B, n, d] of the rotary embedding; `high`, `level`: the mask's [B, n].
    """

    positions: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor]
    high: torch.Tensor
    level: torch.Tensor

    @cached_property
    def mask(self) -> torch.Tensor:
        """Who sees whom, boolean [B, 1, n, n]."""
        return interval_mask(torch.zeros_like(self.high), self.high, self.level)[:, None]

    def at(self, places: torch.Tensor) -> _Tokens:
        """Return the tokens at `places` [B, kept], each with the position and level that it had."""
        cosine, sine = (
            table.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, table.shape[-1]))
            for table in self.rotation
        )
        positions, high, level = (part.gather(1, places) for part in (self.positions, self.high, self.level))
        return _Tokens(positions, (cosine, sine), high, level)

    def through(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run a decoder layer over the hidden states [B, n, D] of these tokens."""
        return layer(hidden, attention_mask=self.mask, position_ids=self.positions, position_embeddings=self.rotation)
