"""The reference implementation of attention with interval levels.

A mask has one integer per key, its level, and two per query, the bounds `low` and `high`: the query sees the keys whose
level lies within its bounds. Causal, bidirectional, coupled and padded masks have this form, and gathering tokens keeps
it: a pruned sequence carries the levels of the tokens that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def interval_mask(low: torch.Tensor, high: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the boolean mask [..., Q, K]: true where `low <= level <= high`.

    Args:
        low: integers [..., Q].
        high: integers [..., Q].
        level: integers [..., K].
    """
    level = level[..., None, :]
    return (level >= low[..., :, None]) & (level <= high[..., :, None])


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute dense attention; the output of a query that sees nothing is zero.

    Args:
        query: [B, heads, Q, d].
        key: [B, heads, K, d].
        value: [B, heads, K, d].
        mask: boolean, broadcastable to [B, heads, Q, K], true where a query sees a key.

    Returns:
        [B, heads, Q, d].
    """
    if query.device.type == "cpu":
        # Torch's CPU attention has a slow bfloat16 backward: float32 is ten times as fast.
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
    """Return the dense mask [H, Tq, Tk] that `block_sparse_attention` applies; H is 1 without a selection.

    Args:
        low: integers [P, Tq].
        high: integers [P, Tq].
        level: integers [P, Tk].
        query_lengths: the queries' segments.
        key_lengths: the keys' segments.
        chosen: boolean [H, Tq, C], which blocks of its segment each query selected; needs `block`.
        block: integers [Tk], each key's block, -1 for a key that is always visible.
    """
    mask = interval_mask(low, high, level).all(0)  # [Tq, Tk]
    segments = []
    # Tokens behind the last segment get different numbers, so that they see nothing and are not seen.
    for lengths, tokens, behind in ((query_lengths, low.shape[1], -1), (key_lengths, level.shape[1], -2)):
        segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths), dtype=torch.int64))
        segments.append(functional.pad(segment, (0, tokens - len(segment)), value=behind))
    query_segment, key_segment = segments
    mask = mask & (query_segment[:, None] == key_segment)
    if chosen is None or block is None:
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
    """Compute attention over packed tokens with all scores in memory; in float64 the kernels are tested against it.

    Args:
        query: [Tq, HQ, D].
        key: [Tk, HK, D]; HK divides HQ.
        value: [Tk, HK, D].
        mask: boolean [H, Tq, Tk]; H divides HQ.
        bias: [HB, Tk]; HB divides HQ.
        scale: factor of the scores; 1/sqrt(D) by default.

    Returns:
        The output [Tq, HQ, D] and the log-sum-exp [HQ, Tq].
    """
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, 1) for part in (key, value))
    score = torch.einsum("ihd,jhd->hij", query, key) * (
        query.shape[2] ** -0.5 if scale is None else scale
    )  # [HQ, Tq, Tk]
    if bias is not None:
        score = score + bias.repeat_interleave(heads // bias.shape[0], 0)[:, None]
    score = score.masked_fill(~mask.repeat_interleave(heads // mask.shape[0], 0), float("-inf"))
    empty = (score == float("-inf")).all(-1, keepdim=True)
    log_sum_exp = torch.where(empty, 0.0, score).logsumexp(-1, keepdim=True)
    weight = torch.where(empty, 0.0, (torch.where(empty, 0.0, score) - log_sum_exp).exp())
    log_sum_exp = torch.where(empty, float("-inf"), log_sum_exp)[..., 0]
    return torch.einsum("hij,jhd->ihd", weight, value), log_sum_exp
