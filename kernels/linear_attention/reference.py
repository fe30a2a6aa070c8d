"""The reference implementation of linear attention with decay: token by token, differentiated by autograd.

Each head keeps a state matrix. Each token decays the state, adds the outer product of its key and value, and reads the
state with its query (Lightning Attention-2, Qin et al., 2024, section 3; the recurrent form of RetNet, Sun et al.,
2023). The state has a constant size, so that a policy can carry its history from one control step to the next.
"""

from __future__ import annotations

import itertools

import torch


def alibi_log_decays(heads: int) -> torch.Tensor:
    """Return a log decay for each head, float32 [heads], from fast to slow: the slopes of ALiBi.

    Press et al., 2022, section 3, as in Lightning Attention: head h of n decays by exp(-2^(-8h/n)) per token.
    """
    return -torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads).float()


def linear_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `linear_attention` in the dtype of its inputs; arguments and results are the same."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if state is None:
        state = query.new_zeros(len(boundaries) - 1, *query.shape[1:], value.shape[-1])
    decay_factor = log_decay.to(state.dtype).exp()[:, None, None]
    bounds = boundaries.tolist()
    outputs, final_state = [], []
    for initial, (start, stop) in zip(state, itertools.pairwise(bounds), strict=True):
        current: torch.Tensor = initial
        for position in range(start, stop):
            current = decay_factor * current + key[position, :, :, None] * value[position, :, None, :]
            outputs.append(factor * torch.einsum("hd,hde->he", query[position], current))
        final_state.append(current)
    outside_output = 0.0 * value[bounds[-1] :]
    output = torch.cat([torch.stack(outputs), outside_output]) if outputs else outside_output
    return output, torch.stack(final_state) if final_state else state.clone()
