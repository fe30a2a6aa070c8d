"""Attention in branches that share one softmax: disjoint sets of keys, attended to apart and joined exactly."""

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
    """Return attention over the union of two disjoint sets of keys from attention over each: outputs and log-sum-exps.

    Outputs [Tq, HQ, D], log-sum-exps [HQ, Tq], float32; a query that sees nothing in either has output 0 and -inf.
    """
    expect(other.shape == output.shape, "other", list(other.shape), list(output.shape))
    both = torch.stack([log_sum_exp, other_log_sum_exp])
    seen = (both > float("-inf")).any(0)
    # Where nothing is seen the difference of infinities would be no number, in the gradient too.
    combined = torch.where(seen, both, 0.0).logsumexp(0)
    combined = torch.where(seen, combined, float("-inf"))
    weight = torch.where(seen, (both - torch.where(seen, combined, 0.0)).exp(), 0.0).transpose(1, 2)[..., None]
    result = output.float() * weight[0] + other.float() * weight[1]
    return result.to(output.dtype), combined


def plan_unselected(
    levels: IntervalLevels, blocks: Blocks, selection: Selection, query_lengths: Lengths = None
) -> AttentionPlan:
    """Plan attention to what was not selected, a pooled key for each block: the second branch of `attend_with_pooled`.

    A block stands for its tokens where a query may see all of them by `levels` (one channel) and did not choose it.
    `blocks`: those of the keys; `query_lengths` [N]: the segments, None for one. Raises ValueError for what does not
    fit.
    """
    count = blocks.tiles.shape[0]
    # The blocks of a segment stand in its place; those that are not needed come behind and are seen by nothing.
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
    """Attend to the selected blocks token by token and to every other one as a whole, in one softmax.

    A block that was not selected enters as the mean of its keys and of its values, and weighs as many times as it has
    tokens. This is what Rectified SpaAttn (arXiv 2511.19835) corrects afterwards, done in the softmax itself and
    differentiable. `unselected_plan` from `plan_unselected`; everything else as in `block_sparse_attention`.
    """
    output, log_sum_exp = block_sparse_attention(query, key, value, plan, scale=scale)
    weight = blocks.tiles[:, 1].clamp(min=1).float().log()[None]
    others = block_sparse_attention(
        query, pool(key, blocks), pool(value, blocks), unselected_plan, bias=weight, scale=scale
    )
    return combine_attention(output, log_sum_exp, *others)
