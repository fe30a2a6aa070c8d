"""Attention in branches that share one softmax: disjoint sets of keys, computed separately and combined exactly."""

from __future__ import annotations

import torch

from ..common.checks import expect
from ..common.segments import Lengths
from ..plan.attention_plan import AttentionPlan, build_plan
from ..plan.blocks import Blocks
from ..plan.pooling import pool
from ..plan.selection import Selection, complement
from .masks import IntervalLevels, block_levels
from .packed import block_sparse_attention


def combine_attention(
    output: torch.Tensor, log_sum_exp: torch.Tensor, other: torch.Tensor, other_log_sum_exp: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine attention over two disjoint sets of keys into attention over their union.

    Args:
        output: [Tq, HQ, D], over the first set.
        log_sum_exp: float32 [HQ, Tq], over the first set.
        other: [Tq, HQ, D], over the second set.
        other_log_sum_exp: float32 [HQ, Tq], over the second set.

    Returns:
        The output and the log-sum-exp over both sets; 0 and -inf for a query that sees nothing in either.

    Raises:
        ValueError: the outputs' shapes differ.
    """
    expect(other.shape == output.shape, "other", list(other.shape), list(output.shape))
    both = torch.stack([log_sum_exp, other_log_sum_exp])  # [2, HQ, Tq]
    seen = (both > float("-inf")).any(0)
    # Where a query sees nothing, -inf - -inf would be NaN, in the gradient too.
    combined = torch.where(seen, both, 0.0).logsumexp(0)
    combined = torch.where(seen, combined, float("-inf"))
    weight = torch.where(seen, (both - torch.where(seen, combined, 0.0)).exp(), 0.0).transpose(1, 2)[
        ..., None
    ]  # [2, Tq, HQ, 1]
    result = output.float() * weight[0] + other.float() * weight[1]
    return result.to(output.dtype), combined


def plan_unselected(
    levels: IntervalLevels, blocks: Blocks, selection: Selection, query_lengths: Lengths = None
) -> AttentionPlan:
    """Plan attention to the blocks that were not selected, with one pooled key each.

    This is the second branch of `attend_with_pooled`. A query sees a pooled key where it may see all tokens of the
    block and did not select it.

    Args:
        levels: the tokens' levels, with one channel.
        blocks: the keys' blocks.
        selection: the blocks that each query selected.
        query_lengths: the queries' segments (see `Lengths`).

    Raises:
        ValueError: a shape, dtype, device or length does not fit.
    """
    count = blocks.tiles.shape[0]
    # The blocks of a segment form a segment of pooled keys; unused blocks come last and are not seen.
    segment = blocks.tiles[:, 2].long().clamp(min=0)
    local = torch.arange(count, device=segment.device) - blocks.first[segment]
    pooled = block_levels(levels, blocks)
    if query_lengths is None:
        query_lengths = levels.low.new_full((1,), levels.low.shape[1])
    return build_plan(
        *pooled,
        query_lengths=query_lengths,
        key_lengths=blocks.count,
        selection=complement(selection, local),
    )


def attend_with_pooled(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    unselected_plan: AttentionPlan,
    blocks: Blocks,
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the tokens of the selected blocks and to every other block as one pooled key, in one softmax.

    A pooled key and its value are the means of the block, weighted by its number of tokens. Rectified SpaAttn (arXiv
    2511.19835) makes this correction after the softmax; here it is part of the softmax and differentiable.

    Args:
        query: [Tq, HQ, D].
        key: [Tk, HK, D].
        value: [Tk, HK, D].
        plan: the plan of the selected blocks.
        unselected_plan: the plan of all other blocks, from `plan_unselected`.
        blocks: the keys' blocks.
        scale: factor of the scores; 1/sqrt(D) by default.

    Returns:
        The output [Tq, HQ, D] and the log-sum-exp [HQ, Tq].

    Raises:
        ValueError: a shape, dtype or device differs.
    """
    output, log_sum_exp = block_sparse_attention(query, key, value, plan, scale=scale)
    weight = blocks.tiles[:, 1].clamp(min=1).float().log()[None]
    others = block_sparse_attention(
        query, pool(key, blocks), pool(value, blocks), unselected_plan, bias=weight, scale=scale
    )
    return combine_attention(output, log_sum_exp, *others)
