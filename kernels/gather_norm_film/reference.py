"""The reference implementation of gather_norm_film: its definition in torch, differentiated by autograd."""

from __future__ import annotations

import torch


def gather_norm_film_reference(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor] | None = None,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `gather_norm_film` in the dtype of its inputs; arguments and results are the same."""
    kept, valid = tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if indices is not None:
        valid = indices >= 0
        kept = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1) if tokens.shape[1] == 0 else tokens
        index = indices.clamp(min=0).long()[..., None].expand(-1, -1, tokens.shape[-1])
        kept = torch.where(valid[..., None], kept.gather(1, index), 0.0)  # [B, n, D]
    result = kept * torch.rsqrt(kept.square().mean(-1, keepdim=True) + epsilon) * weight
    if modulation is not None:
        scale, shift = modulation
        result = result * (1 + scale[:, None]) + shift[:, None]
    return kept, torch.where(valid[..., None], result, 0.0)
