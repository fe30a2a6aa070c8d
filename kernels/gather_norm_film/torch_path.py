"""gather_norm_film in plain torch with its own backward, for processors without Triton: both steps of the kernels."""

from __future__ import annotations

import torch


def forward(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the kept tokens (none without `indices`), these normed and modulated, and the norms' inverse [B, n].

    Raises ValueError for places that are not there or are named twice.
    """
    kept, valid = tokens, None
    if indices is not None:
        valid = _valid_indices(indices, tokens.shape[1])
        # -1 names the last of all: one of zeros, where one is named.
        padded_tokens = (
            tokens if valid is None else torch.cat([tokens, tokens.new_zeros(len(tokens), 1, tokens.shape[2])], 1)
        )
        kept = padded_tokens[_sample_indices(indices), indices]
    tokens_float = kept.to(torch.promote_types(kept.dtype, torch.float32))
    inverse_rms = torch.rsqrt(
        torch.linalg.vector_norm(tokens_float, dim=-1).square() / tokens_float.shape[-1] + epsilon
    )
    result = tokens_float * inverse_rms[..., None]
    if scale is None:
        result *= weight.to(tokens_float.dtype)
    else:
        result = torch.addcmul(
            shift.to(tokens_float.dtype)[:, None], result, _gain(weight, scale, tokens_float.dtype)[:, None]
        )
        result = result if valid is None else result.masked_fill_(~valid[..., None], 0.0)
    return (tokens.new_empty(0) if indices is None else kept), result.to(tokens.dtype), inverse_rms


def backward(
    source: torch.Tensor,
    inverse_rms: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept_gradient: torch.Tensor | None,
    gradient: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the tokens [B, sources, D] and two sums over each sample's tokens, [B, 2, D].

    They are of the gradient times the normed token, and of the gradient: weight, scale and shift need no more.
    `source`: the kept tokens, or all of them without `indices`; `gradient`: of what was normed and modulated.
    """
    tokens_float, gradient = source.to(inverse_rms.dtype), gradient.to(inverse_rms.dtype)
    valid = None if indices is None or (indices >= 0).all() else (indices >= 0)[..., None]
    gradient = gradient if valid is None else gradient.masked_fill(~valid, 0.0)
    normed = tokens_float * inverse_rms[..., None]
    product = gradient * normed
    sums = torch.stack([product.sum(1), gradient.sum(1)], dim=1)
    gain = _gain(weight, scale, tokens_float.dtype).expand(len(source), -1)
    projection = torch.matmul(product, gain[..., None]) / tokens_float.shape[-1]
    result = torch.addcmul(gradient * gain[:, None], normed, projection, value=-1.0).mul_(inverse_rms[..., None])
    if kept_gradient is not None:
        result += kept_gradient
    result = result.to(source.dtype)
    if indices is not None:
        scattered = source.new_zeros(len(source), sources + (valid is not None), source.shape[-1])
        scattered[_sample_indices(indices), indices] = result
        result = scattered[:, :sources].contiguous()
    return result, sums


def _sample_indices(indices: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)


def _gain(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return what a normed token is multiplied with, [D] or [B, D]."""
    return weight.to(dtype) if scale is None else weight.to(dtype) * (1 + scale.to(dtype))


def _valid_indices(indices: torch.Tensor, sources: int) -> torch.Tensor | None:
    """Return which places name a token, None for all."""
    valid = indices >= 0
    if (indices >= sources).any() or (indices < -1).any():
        low, high = int(indices.min()), int(indices.max())
        raise ValueError(f"places: got {low} to {high}, expected -1 for none, else 0 to {sources - 1}")
    is_used = indices.new_zeros(len(indices), sources + 1, dtype=torch.bool)
    is_used.scatter_(1, torch.where(valid, indices, sources).long(), True)
    if is_used[:, :sources].sum() != valid.sum():
        raise ValueError("places: got a place twice in one sample, expected each at most once")
    return None if valid.all() else valid
