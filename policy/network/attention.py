"""Attention of trunk and expert: PyTorch's with a mask, or this package's operator with a plan.

`Architecture.kernels` chooses; both compute the same numbers up to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ...errors import InputError
from ...kernels.block_sparse import attention, batched_block_sparse_attention, interval_mask
from ...kernels.block_sparse.packed import MAX_HEAD_SIZE
from ...kernels.plan import AttentionPlan, batch_plan

DECODER_ATTENTION = "saccade_block_sparse"
"""The name under which the library's decoders find `decoder_attention`."""

type AttentionPattern = torch.Tensor | AttentionPlan
"""Which keys each query attends to: a boolean mask [B, 1, Q, K], or a plan of the operator."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_pattern: AttentionPattern | None = None
) -> torch.Tensor:
    """Compute scaled dot-product attention; a query without keys gets zero.

    Args:
        query: [B, heads, Q, d].
        key: [B, groups, K, d]; groups divide heads, as in grouped-query attention.
        value: [B, groups, K, d].
        attention_pattern: Which keys each query attends to; None for all.

    Returns:
        [B, heads, Q, d].
    """
    if isinstance(attention_pattern, AttentionPlan):
        # Under autocast, rotated or scaled tensors are float32 again, and the operator takes one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return batched_block_sparse_attention(query, key, value, attention_pattern)[0]
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (part.repeat_interleave(repeat, dim=1) for part in (key, value))  # [B, heads, K, d]
    return attention(query, key, value, attention_pattern)


def mask_by_levels(high: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the mask [B, 1, Q, K]: queries attend to keys whose levels [B, K] lie from 0 to their bound `high` [Q]."""
    return interval_mask(torch.zeros_like(high), high, level)[:, None]


def plan_by_levels(high: torch.Tensor, level: torch.Tensor) -> AttentionPlan:
    """Return the operator's plan for the mask of `mask_by_levels`.

    Building it does not wait for the device, its shapes depend on those of the arguments alone, and it serves every
    layer with the same tokens.
    """
    high = high.expand(len(level), -1)
    return batch_plan(torch.zeros_like(high), high, level)


def full_attention_plan(batch: int, queries: int, keys: int, device: torch.device) -> AttentionPlan:
    """Return the operator's plan by which every query attends to every key of its row."""
    high = torch.zeros(queries, dtype=torch.int32, device=device)
    return plan_by_levels(high, high.new_zeros(batch, keys))


def check_head_size(part: str, width: int) -> None:
    """Raise InputError for heads of `part` (trunk or expert) that are too wide for the operator."""
    if width > MAX_HEAD_SIZE:
        raise InputError(
            "architecture.kernels",
            got=f"saccade, with heads of {width} numbers in the {part}",
            expected=f"heads of at most {MAX_HEAD_SIZE}",
            fix="Choose the kernels torch, or more heads.",
        )


def decoder_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionPattern,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of a Hugging Face decoder layer, with the signature of its attention interface.

    The layer passes `attention_mask` on unchanged, a mask or a plan. Other arguments of the library (caches, indices)
    have no effect here.

    Raises:
        InputError: The layer asks for something that would change the result and is not implemented here.
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
    return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
