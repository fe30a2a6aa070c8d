"""gather_norm_film in plain torch with its own backward, for processors without Triton: both steps of the kernels."""

from __future__ import annotations

import torch


def forward(
    tokens: torch.Tensor,
    places: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the kept tokens (none without `places`), these normed and modulated, and the norms' inverse [B, n].

    Raises ValueError for places that are not there or are named twice.
    """
    kept = tokens
    if places is not None:
        real = _real(places, tokens.shape[1])
        batch = torch.arange(len(tokens), device=tokens.device)[:, None]
        kept = tokens.new_zeros(*places.shape, tokens.shape[-1])
        if real.all():
            kept = tokens[batch, places]
        else:
            kept[real] = tokens[batch.expand_as(places)[real], places[real]]
    wide = kept.to(torch.promote_types(kept.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(-1) + epsilon)
    gain = weight.to(wide.dtype) if scale is None else weight.to(wide.dtype) * (1 + scale.to(wide.dtype)[:, None])
    result = wide * inverse[..., None] * gain
    if shift is not None:
        result += shift.to(wide.dtype)[:, None]
    if places is not None and shift is not None:
        result.masked_fill_(~real[..., None], 0.0)
    return (tokens.new_empty(0) if places is None else kept), result.to(tokens.dtype), inverse


def backward(
    source: torch.Tensor,
    inverse: torch.Tensor,
    places: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept_gradient: torch.Tensor | None,
    gradient: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the tokens [B, sources, D] and two sums over each sample's tokens, [B, 2, D].

    They are of the gradient times the normed token, and of the gradient: weight, scale and shift need no more.
    `source`: the kept tokens, or all of them without `places`; `gradient`: of what was normed and modulated.
    """
    wide, gradient = source.to(inverse.dtype), gradient.to(inverse.dtype)
    if places is not None:
        real = (places >= 0)[..., None]
        gradient = gradient.masked_fill(~real, 0.0)
    normed = wide * inverse[..., None]
    sums = torch.stack([(gradient * normed).sum(1), gradient.sum(1)], dim=1)
    gain = weight.to(wide.dtype) if scale is None else weight.to(wide.dtype) * (1 + scale.to(wide.dtype)[:, None])
    gradient = gradient * gain
    result = inverse[..., None] * (gradient - normed * (gradient * normed).mean(-1, keepdim=True))
    if kept_gradient is not None:
        result += kept_gradient
    result = result.to(source.dtype)
    if places is not None:
        chosen = real[..., 0]
        batch = torch.arange(len(source), device=source.device)[:, None].expand_as(places)
        scattered = source.new_zeros(len(source), sources, source.shape[-1])
        scattered[batch[chosen], places[chosen]] = result[chosen]
        result = scattered
    return result, sums


def _real(places: torch.Tensor, sources: int) -> torch.Tensor:
    """Return which places name a token."""
    real = places >= 0
    if (places >= sources).any() or (places < -1).any():
        low, high = int(places.min()), int(places.max())
        raise ValueError(f"places: got {low} to {high}, expected -1 for none, else 0 to {sources - 1}")
    named = places.new_zeros(len(places), sources + 1, dtype=torch.bool)
    named.scatter_(1, torch.where(real, places, sources).long(), True)
    if named[:, :sources].sum() != real.sum():
        raise ValueError("places: got a place twice in one sample, expected each at most once")
    return real
