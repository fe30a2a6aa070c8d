"""Pruning: in each trunk layer a fixed number of visual tokens works, picked by an instruction-conditioned score.

After CogVLA's LLM-FiLM based pruning routing (LFP; section 3 of the paper). `PruningRouter` is what its own analysis
asks for: without the half of the parameters that cannot change a ranking (a shift adds the same number to all), and
steered by the instruction alone, so that its direction is computed once. `CogVLARouter` is the released method.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from ..kernels.gather_norm_film import gather_norm_film


def keep_schedule(tokens: int, layers: int, *, first: int, floor: float) -> tuple[int, ...]:
    """Return how many of `tokens` visual tokens each of `layers` layers keeps: a shifted cosine down to `floor`.

    The cosine spans all layers; those before `first` keep all the same. Raises InputError for numbers out of range.
    """
    if not 0 <= first <= layers:
        raise InputError("prune_from", got=first, expected=f"0 to {layers} layers", fix="The layer count turns it off.")
    if not 0.0 < floor <= 1.0:
        raise InputError("keep_floor", got=floor, expected="above 0, at most 1", fix="CogVLA uses 0.15.")
    kept = []
    for layer in range(layers):
        cosine = 0.5 + 0.5 * math.cos(math.pi * layer / max(layers - 1, 1))
        kept.append(tokens if layer < first else max(1, math.floor(tokens * max(cosine, floor))))
    return tuple(kept)


class PruningRouter(nn.Module):
    """Score visual tokens by the instruction: `x . (w * (1 + scale(t)))`."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.weight = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.scale = nn.Linear(condition, width)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def direction(self, condition: torch.Tensor) -> torch.Tensor:
        """Return what tokens are compared with under a condition [B, C]: [B, D]."""
        return self.weight * (1 + self.scale(condition))

    def forward(self, tokens: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Map tokens [B, N, D] and the direction [B, D] to scores [B, N]."""
        normed = self.norm(tokens.to(self.norm.weight.dtype))
        return torch.einsum("bnd,bd->bn", normed, direction)


class CogVLARouter(nn.Module):
    """Score tokens as the released CogVLA does: FiLM by the layer's own text states, then a softmax of two logits.

    The scores of visual tokens are modulated, those of all others are not; every kept token's feed-forward is scaled
    by its score.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = _two_layer_mlp(width)
        self.shift = _two_layer_mlp(width)
        self.weigh = nn.Linear(width, 2)
        for layer in (*self.scale, *self.shift, self.weigh):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, normed: torch.Tensor, visual: slice, pooled: torch.Tensor) -> torch.Tensor:
        """Map normed hidden states [B, S, D], the visual span and the pooled text [B, D] to chances [B, S]."""
        scale, shift = self.scale(pooled)[:, None], self.shift(pooled)[:, None]
        modulated = normed[:, visual] * (1 + scale) + shift
        scored = torch.cat([normed[:, : visual.start], modulated, normed[:, visual.stop :]], dim=1)
        return functional.softmax(self.weigh(scored), dim=-1)[..., 1]


def _two_layer_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))


def select_top_tokens(scores: torch.Tensor, groups: int, keep: int) -> torch.Tensor:
    """Return the places [B, groups*keep] of the `keep` best-scored tokens of each group, in their order.

    `scores`: [B, N], of `groups` equal groups one after another: the views, so that none is starved, or one for all.
    """
    batch, tokens = scores.shape
    each = tokens // groups
    best = scores.reshape(batch, groups, each).topk(keep, dim=-1).indices.sort(-1).values
    offset = torch.arange(groups, device=scores.device)[:, None] * each
    return (best + offset).flatten(1)


def gather_and_normalize(
    tokens: torch.Tensor, indices: torch.Tensor, norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens [B, n, D] at `indices` [B, n] of [B, S, D], as they are and behind an RMS `norm`, in one pass.

    `norm`: one of transformers, as Llama's is. No place may be named twice in a sample.
    """
    return gather_norm_film(tokens, indices, norm.weight, epsilon=norm.variance_epsilon)
