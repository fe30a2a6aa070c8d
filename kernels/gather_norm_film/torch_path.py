"""gather_norm_film in plain torch with a backward pass of its own, for machines without a GPU.

The functions take and return what their namesakes in `kernel` do.
"""

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
    """Return the kept tokens, the normalized and modulated tokens (both [B, n, D]), and the inverse RMS [B, n].

    The kept tokens are empty without `indices`. Raises ValueError for indices out of range or repeated in a sample.
    """
    kept, valid = tokens, None
    if indices is not None:
        valid = _valid_indices(indices, tokens.shape[1])
        padded_tokens = tokens
        if valid is not None:
            # Index -1 selects the last token: append one of zeros.
            padded_tokens = torch.cat([tokens, tokens.new_zeros(len(tokens), 1, tokens.shape[2])], 1)  # [B, S + 1, D]
        kept = padded_tokens[_sample_indices(indices), indices]  # [B, n, D]
    tokens_float = kept.to(torch.promote_types(kept.dtype, torch.float32))
    mean_square = torch.linalg.vector_norm(tokens_float, dim=-1).square() / tokens_float.shape[-1]  # [B, n]
    inverse_rms = torch.rsqrt(mean_square + epsilon)
    result = tokens_float * inverse_rms[..., None]  # [B, n, D]
    if scale is None or shift is None:
        result *= weight.to(tokens_float.dtype)
    else:
        gain = _gain(weight, scale, tokens_float.dtype)[:, None]  # [B, 1, D]
        result = torch.addcmul(shift.to(tokens_float.dtype)[:, None], result, gain)
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

    The sums are of gradient * normalized token, and of the gradient: weight, scale and shift need no more.
    `source`: the kept tokens, or all tokens without `indices`; `gradient`: of the normalized and modulated tokens.
    """
    tokens_float, gradient = source.to(inverse_rms.dtype), gradient.to(inverse_rms.dtype)
    valid = None if indices is None or (indices >= 0).all() else (indices >= 0)[..., None]
    gradient = gradient if valid is None else gradient.masked_fill(~valid, 0.0)
    normed = tokens_float * inverse_rms[..., None]  # [B, n, D]
    product = gradient * normed
    sums = torch.stack([product.sum(1), gradient.sum(1)], dim=1)  # [B, 2, D]
    gain = _gain(weight, scale, tokens_float.dtype).expand(len(source), -1)  # [B, D]
    projection = torch.matmul(product, gain[..., None]) / tokens_float.shape[-1]  # [B, n, 1]
    result = torch.addcmul(gradient * gain[:, None], normed, projection, value=-1.0).mul_(inverse_rms[..., None])
    if kept_gradient is not None:
        result += kept_gradient
    result = result.to(source.dtype)
    if indices is not None:
        scattered = source.new_zeros(len(source), sources + (valid is not None), source.shape[-1])
        scattered[_sample_indices(indices), indices] = result
        result = scattered[:, :sources].contiguous()  # [B, sources, D]
    return result, sums


def _sample_indices(indices: torch.Tensor) -> torch.Tensor:
    """Return the sample of each index, [B, n]."""
    return torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)


def _gain(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the factor of a normalized token, [D] or [B, D]."""
    return weight.to(dtype) if scale is None else weight.to(dtype) * (1 + scale.to(dtype))


def _valid_indices(indices: torch.Tensor, sources: int) -> torch.Tensor | None:
    """Return which indices select a token, [B, n]; None where all do."""
    valid = indices >= 0
    if (indices >= sources).any() or (indices < -1).any():
        low, high = int(indices.min()), int(indices.max())
        raise ValueError(f"indices: got {low} to {high}, expected -1 for none, else 0 to {sources - 1}")
    is_used = indices.new_zeros(len(indices), sources + 1, dtype=torch.bool)
    is_used.scatter_(1, torch.where(valid, indices, sources).long(), True)
    if is_used[:, :sources].sum() != valid.sum():
        raise ValueError("indices: got an index twice in one sample, expected each at most once")
    return None if valid.all() else valid
