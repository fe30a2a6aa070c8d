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
    kept, real = tokens, None
    if places is not None:
        real = _real(places, tokens.shape[1])
        # -1 names the last of all: one of zeros, where one is named.
        given = tokens if real is None else torch.cat([tokens, tokens.new_zeros(len(tokens), 1, tokens.shape[2])], 1)
        kept = given[_samples(places), places]
    wide = kept.to(torch.promote_types(kept.dtype, torch.float32))
    inverse = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1).square() / wide.shape[-1] + epsilon)
    result = wide * inverse[..., None]
    if scale is None:
        result *= weight.to(wide.dtype)
    else:
        result = torch.addcmul(shift.to(wide.dtype)[:, None], result, _gain(weight, scale, wide.dtype)[:, None])
        result = result if real is None else result.masked_fill_(~real[..., None], 0.0)
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
    real = None if places is None or (places >= 0).all() else (places >= 0)[..., None]
    gradient = gradient if real is None else gradient.masked_fill(~real, 0.0)
    normed = wide * inverse[..., None]
    product = gradient * normed
    sums = torch.stack([product.sum(1), gradient.sum(1)], dim=1)
    gain = _gain(weight, scale, wide.dtype).expand(len(source), -1)
    along = torch.matmul(product, gain[..., None]) / wide.shape[-1]
    result = torch.addcmul(gradient * gain[:, None], normed, along, value=-1.0).mul_(inverse[..., None])
    if kept_gradient is not None:
        result += kept_gradient
    result = result.to(source.dtype)
    if places is not None:
        scattered = source.new_zeros(len(source), sources + (real is not None), source.shape[-1])
        scattered[_samples(places), places] = result
        result = scattered[:, :sources].contiguous()
    return result, sums


def _samples(places: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(places), device=places.device)[:, None].expand_as(places)


def _gain(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return what a normed token is multiplied with, [D] or [B, D]."""
    return weight.to(dtype) if scale is None else weight.to(dtype) * (1 + scale.to(dtype))


def _real(places: torch.Tensor, sources: int) -> torch.Tensor | None:
    """Return which places name a token, None for all."""
    real = places >= 0
    if (places >= sources).any() or (places < -1).any():
        low, high = int(places.min()), int(places.max())
        raise ValueError(f"places: got {low} to {high}, expected -1 for none, else 0 to {sources - 1}")
    named = places.new_zeros(len(places), sources + 1, dtype=torch.bool)
    named.scatter_(1, torch.where(real, places, sources).long(), True)
    if named[:, :sources].sum() != real.sum():
        raise ValueError("places: got a place twice in one sample, expected each at most once")
    return None if real.all() else real
