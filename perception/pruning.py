"""Pruning: in each trunk layer a fixed number of visual tokens works, picked by an instruction-conditioned score.

After CogVLA's LLM-FiLM based pruning routing (LFP; section 3 of the paper), with three changes that its own analysis
asks for: the half of the router that cannot change a ranking is left out (a shift adds the same number to all), tokens
keep their positions, and every camera keeps its share, so that none is starved.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import InputError


def keep_schedule(tokens: int, layers: int, *, first: int, floor: float) -> tuple[int, ...]:
    """Return how many of one view's `tokens` each of `layers` layers keeps: a shifted cosine from all down to `floor`.

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

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map tokens [B, N, D] and condition [B, C] to scores [B, N]."""
        direction = self.weight * (1 + self.scale(condition))
        normed = self.norm(tokens.to(self.norm.weight.dtype))
        return torch.einsum("bnd,bd->bn", normed, direction)


def select(scores: torch.Tensor, views: int, keep: int) -> torch.Tensor:
    """Return the places [B, V*keep] of the `keep` best-scored tokens of each view, in their order.

    `scores`: [B, V*M].
    """
    batch, tokens = scores.shape
    per_view = tokens // views
    best = scores.reshape(batch, views, per_view).topk(keep, dim=-1).indices.sort(-1).values
    offset = torch.arange(views, device=scores.device)[:, None] * per_view
    return (best + offset).flatten(1)
