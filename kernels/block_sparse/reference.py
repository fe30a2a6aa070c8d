"""The readable reference of interval-level attention.

A mask is written with one integer for each key, its level, and two for each query, the bounds `low` and `high`: the
query sees the keys whose level lies between its bounds. Causal, bidirectional, coupled and padded masks are all of
this form, and gathering tokens keeps it: a pruned sequence carries the levels of the tokens that stayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def interval_mask(low: torch.Tensor, high: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the boolean mask [..., Q, K]: true where `low <= level <= high`.

    `low` and `high`: integers [..., Q]; `level`: integers [..., K].
    """
    keys = level[..., None, :]
    return (keys >= low[..., :, None]) & (keys <= high[..., :, None])


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend from `query` [B, heads, Q, d] to `key`, `value` [B, heads, K, d]; a query that sees nothing gets zero.

    `mask`: boolean, broadcastable to [B, heads, Q, K], true where a query sees a key.
    """
    if query.device.type == "cpu":
        # Torch's CPU attention has no fast bfloat16 backward: in float32 it is ten times as fast.
        with torch.autocast("cpu", enabled=False):
            parts = (query.float(), key.float(), value.float())
            output = functional.scaled_dot_product_attention(*parts, attn_mask=mask).to(query.dtype)
    else:
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if mask is not None:
        output = torch.where(mask.any(-1, keepdim=True), output, 0.0)
    return output


def packed_mask(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    chosen: torch.Tensor | None = None,
    block: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mask [H, Tq, Tk] of what `block_sparse_attention` computes without ever writing a mask.

    `low`, `high` [P, Tq] and `level` [P, Tk]; segments of `query_lengths` and `key_lengths`; `chosen` boolean
    [H, Tq, C]: which blocks of its segment each query chose; `block` [Tk]: each key's, -1 where it needs no choosing.
    """
    mask = interval_mask(low, high, level).all(0)
    parts = []
    for lengths, tokens in ((query_lengths, low.shape[1]), (key_lengths, level.shape[1])):
        segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths), dtype=torch.int64))
        parts.append((segment, tokens - len(segment)))
    (rows, rows_behind), (columns, columns_behind) = parts
    rows, columns = (
        functional.pad(rows, (0, rows_behind), value=-1),
        functional.pad(columns, (0, columns_behind), value=-2),
    )
    mask = mask & (rows[:, None] == columns)
    if chosen is None:
        return mask[None]
    seen = chosen[:, :, block.clamp(min=0).long()] | (block < 0)
    return mask & seen


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [Tq, HQ, D] and log-sum-exp [HQ, Tq] of packed tokens, every score written out.

    `query` [Tq, HQ, D], `key` and `value` [Tk, HK, D], `mask` boolean [H, Tq, Tk], `bias` [HB, Tk]; HK, H and HB divide
    HQ. In float64 this is what the kernels are measured against.
    """
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, 1) for part in (key, value))
    score = torch.einsum("ihd,jhd->hij", query, key) * (query.shape[2] ** -0.5 if scale is None else scale)
    if bias is not None:
        score = score + bias.repeat_interleave(heads // bias.shape[0], 0)[:, None]
    score = score.masked_fill(~mask.repeat_interleave(heads // mask.shape[0], 0), float("-inf"))
    empty = (score == float("-inf")).all(-1, keepdim=True)
    log_sum_exp = torch.where(empty, 0.0, score).logsumexp(-1, keepdim=True)
    weight = torch.where(empty, 0.0, (torch.where(empty, 0.0, score) - log_sum_exp).exp())
    log_sum_exp = torch.where(empty, float("-inf"), log_sum_exp)[..., 0]
    return torch.einsum("hij,jhd->ihd", weight, value), log_sum_exp
