"""Token pruning: each trunk layer keeps a fixed number of visual tokens, by an instruction-conditioned score.

After CogVLA's LLM-FiLM based pruning routing (LFP; arXiv 2508.21046, section 3). `CogVLARouter` is the released method.
`PruningRouter` leaves out the half of its parameters that cannot change a ranking (a shift adds the same number to all
scores), and depends on the instruction only, so that its direction is computed once.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from ..kernels.gather_norm_film import gather_norm_film


def keep_schedule(tokens: int, layers: int, *, first: int, floor: float) -> tuple[int, ...]:
    """Return the visual tokens that each layer keeps: CogVLA's shifted cosine (arXiv 2508.21046, section 3).

    The cosine spans all layers, and layers before `first` keep all tokens.

    Args:
        tokens: visual tokens N.
        layers: layers of the trunk.
        first: the first layer that prunes; `layers` turns pruning off.
        floor: the smallest share of tokens that a layer keeps, above 0 and at most 1.

    Raises:
        InputError: `first` or `floor` is out of range.
    """
    if not 0 <= first <= layers:
        raise InputError(
            "prune_from",
            got=first,
            expected=f"0 to {layers} layers",
            fix="Use the number of layers to turn pruning off.",
        )
    if not 0.0 < floor <= 1.0:
        raise InputError("keep_floor", got=floor, expected="above 0, at most 1", fix="Use 0.15, as CogVLA.")
    kept = []
    for layer in range(layers):
        cosine = 0.5 + 0.5 * math.cos(math.pi * layer / max(layers - 1, 1))
        kept.append(tokens if layer < first else max(1, math.floor(tokens * max(cosine, floor))))
    return tuple(kept)


class PruningRouter(nn.Module):
    """Score visual tokens by the instruction t: `x . (w * (1 + scale(t)))`.

    After CogVLA's LFP (arXiv 2508.21046, section 3), without the shift of FiLM.

    Args:
        width: trunk width D.
        condition_width: width C of the condition.
    """

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.weight = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.scale = nn.Linear(condition_width, width)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def direction(self, condition: torch.Tensor) -> torch.Tensor:
        """Map a condition [B, C] to the direction [B, D] whose dot product with a token is the score."""
        return self.weight * (1 + self.scale(condition))

    def forward(self, tokens: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Map tokens [B, N, D] and the direction [B, D] to scores [B, N]."""
        normed = self.norm(tokens.to(self.norm.weight.dtype))
        return torch.einsum("bnd,bd->bn", normed, direction)


class CogVLARouter(nn.Module):
    """Score tokens as the released CogVLA (LFP; arXiv 2508.21046, section 3): FiLM, then a softmax of two logits.

    FiLM is conditioned on the layer's own text states and modulates visual tokens only. The feed-forward output of
    every kept token is multiplied by its score.

    Args:
        width: trunk width D.
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
        """Map normalized hidden states to scores.

        Args:
            normed: [B, S, D].
            visual: the span of the visual tokens in the sequence.
            pooled: the mean of the text states [B, D].

        Returns:
            Probabilities [B, S].
        """
        scale, shift = self.scale(pooled)[:, None], self.shift(pooled)[:, None]  # [B, 1, D] each
        modulated = normed[:, visual] * (1 + scale) + shift  # [B, N, D]
        scored = torch.cat([normed[:, : visual.start], modulated, normed[:, visual.stop :]], dim=1)  # [B, S, D]
        return functional.softmax(self.weigh(scored), dim=-1)[..., 1]


def _two_layer_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))


def select_top_tokens(scores: torch.Tensor, groups: int, keep: int) -> torch.Tensor:
    """Return the indices of the `keep` best tokens of each group, in ascending order.

    Args:
        scores: [B, N], for `groups` consecutive groups of equal size.
        groups: the number V of views, so that every view keeps tokens, or 1 for all tokens together.
        keep: tokens that each group keeps.

    Returns:
        Indices [B, groups * keep].
    """
    batch, tokens = scores.shape
    group_size = tokens // groups
    best = scores.reshape(batch, groups, group_size).topk(keep, dim=-1).indices.sort(-1).values  # [B, groups, keep]
    offset = torch.arange(groups, device=scores.device)[:, None] * group_size  # [groups, 1]
    return (best + offset).flatten(1)


def gather_and_normalize(
    tokens: torch.Tensor, indices: torch.Tensor, norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather tokens and RMS-normalize them in one pass.

    Args:
        tokens: [B, S, D].
        indices: [B, n], each index at most once in a sample.
        norm: an RMS norm of transformers, such as LlamaRMSNorm.

    Returns:
        The gathered tokens [B, n, D], and the same tokens normalized.
    """
    weight, epsilon = cast("torch.Tensor", norm.weight), cast("float", norm.variance_epsilon)
    return gather_norm_film(tokens, indices, weight, epsilon=epsilon)
