"""Attention as trunk and expert run it: PyTorch's own with a mask, or the package's operator with a plan.

What a query sees is either; both give the same numbers up to rounding, and the choice is `Architecture.kernels`.
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
"""Who sees whom: a boolean mask [B, 1, Q, K], or a plan of the operator."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_pattern: AttentionPattern | None = None
) -> torch.Tensor:
    """Attend from `query` [B, heads, Q, d] to `key`, `value` [B, groups, K, d]; a query that sees nothing gets zero.

    Without `attention_pattern` everything is seen. Groups are repeated for a mask; the operator takes them as they are.
    """
    if isinstance(attention_pattern, AttentionPlan):
        # Under autocast what was turned or scaled is in float32 again, and the operator takes one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return batched_block_sparse_attention(query, key, value, attention_pattern)[0]
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (part.repeat_interleave(repeat, dim=1) for part in (key, value))
    return attention(query, key, value, attention_pattern)


def mask_by_levels(high: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the mask [B, 1, Q, K] by which queries of bounds `high` [Q] see keys of levels [B, K] from 0 up to it."""
    return interval_mask(torch.zeros_like(high), high, level)[:, None]


def plan_by_levels(high: torch.Tensor, level: torch.Tensor) -> AttentionPlan:
    """Return the operator's plan for the same.

    It is made without waiting for the device, its shape follows from the arguments' alone, and it serves every layer
    with the same tokens.
    """
    high = high.expand(len(level), -1)
    return batch_plan(torch.zeros_like(high), high, level)


def full_attention_plan(batch: int, queries: int, keys: int, device: torch.device) -> AttentionPlan:
    """Return the operator's plan by which in each member of a batch every query sees every key."""
    high = torch.zeros(queries, dtype=torch.int32, device=device)
    return plan_by_levels(high, high.new_zeros(batch, keys))


def check_head_size(part: str, width: int) -> None:
    """Raise InputError for heads that are too wide for the operator."""
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
    """Serve a Hugging Face decoder layer with our attention, in the signature of its attention interface.

    The layer hands `attention_mask` on as it came, be it a mask or a plan. What else the library hands over (caches,
    indices) has no meaning here; what would change the result and is not done here raises InputError.
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
