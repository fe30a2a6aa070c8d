"""Selection of key blocks for queries: scores, the best blocks, and the bits that attention reads."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.checks import expect, expect_tensor
from .blocks import Blocks


class Selection(NamedTuple):
    """The blocks that each query selected; attention is exact on their tokens.

    Attributes:
        selection_bits: int32 [H, Tq, W], bit n is set where the query selected block n of its segment; H divides the
            query heads.
        block: int32 [Tk], each key's block within its segment, -1 for a key that is always visible.
        block_size: each run of `block_size` keys, counted from the segment's start, lies in one block.
    """

    selection_bits: torch.Tensor
    block: torch.Tensor
    block_size: int


def pack_selection(chosen: torch.Tensor, blocks: Blocks, always_visible: torch.Tensor | None = None) -> Selection:
    """Pack a boolean choice of blocks into bits.

    Args:
        chosen: boolean [H, Tq, C], which of the C blocks of its segment each query selected.
        blocks: the keys' blocks.
        always_visible: boolean [Tk], keys that need no selection, such as those of the instruction.

    Raises:
        ValueError: a shape, dtype or device differs.
    """
    expect_tensor(chosen, "chosen", shape=(None, None, blocks.max_per_segment), dtypes=(torch.bool,))
    word_count = -(-chosen.shape[-1] // 32)
    bits = torch.nn.functional.pad(chosen.long(), (0, word_count * 32 - chosen.shape[-1])).unflatten(
        -1, (word_count, 32)
    )
    packed = (bits << torch.arange(32, device=chosen.device)).sum(-1)
    # Bit 31 is the sign: bring the sum into the range of int32 before casting.
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    if always_visible is None:
        return Selection(packed.contiguous(), blocks.block_in_segment.int().contiguous(), blocks.size)
    expect_tensor(
        always_visible,
        "always_visible",
        shape=(blocks.block_in_segment.shape[0],),
        dtypes=(torch.bool,),
        device=chosen.device,
    )
    return Selection(packed.contiguous(), blocks.block_in_segment.masked_fill(always_visible, -1).int().contiguous(), 1)


def complement(selection: Selection, blocks: torch.Tensor) -> Selection:
    """Return the selection of the blocks that were not selected, for keys that each represent a whole block.

    Args:
        selection: the blocks that each query selected.
        blocks: integers [Tk], the block within its segment that each key represents.
    """
    return Selection(~selection.selection_bits, blocks.int().contiguous(), 1)


def block_scores(query: torch.Tensor, pooled: torch.Tensor, blocks: Blocks, segment: torch.Tensor) -> torch.Tensor:
    """Score the blocks of each query's segment by the unscaled dot product, as in VMoBA (arXiv 2506.23858).

    Args:
        query: [Tq, HQ, D].
        pooled: [n, HK, D], the blocks' mean keys.
        blocks: the keys' n blocks.
        segment: integers [Tq], each query's segment, -1 for none.

    Returns:
        float32 [HQ, Tq, C] with C = `blocks.max_per_segment`; -inf where the segment has no such block.

    Raises:
        ValueError: a shape, dtype or device differs.
    """
    expect(query.dim() == 3, "query", list(query.shape), "the shape [Tq, HQ, D]")
    expect_tensor(
        pooled,
        "pooled",
        shape=(blocks.tiles.shape[0], None, query.shape[2]),
        dtypes=(query.dtype,),
        device=query.device,
    )
    group = query.shape[1] // pooled.shape[1]
    all_scores = torch.einsum("thd,nhd->htn", query.float(), pooled.float().repeat_interleave(group, 1))  # [HQ, Tq, n]
    block_in_segment = torch.arange(blocks.max_per_segment, device=query.device)  # [C]
    block = blocks.first[segment.clamp(min=0)][:, None] + block_in_segment  # [Tq, C]
    is_present = (block_in_segment < blocks.count[segment.clamp(min=0)][:, None]) & (segment[:, None] >= 0)
    block = block.clamp(max=pooled.shape[0] - 1)
    scores = all_scores.gather(2, block.long().expand(len(all_scores), -1, -1))  # [HQ, Tq, C]
    return scores.masked_fill(~is_present, float("-inf"))


def select_top_k(scores: torch.Tensor, count: int, forced: torch.Tensor | None = None) -> torch.Tensor:
    """Select each query's `count` best blocks; ties are broken deterministically.

    Args:
        scores: [H, Tq, C]; a block of score -inf is never selected.
        count: blocks of each query.
        forced: boolean, broadcastable to `scores`: blocks that are selected in addition.

    Returns:
        boolean [H, Tq, C], the selected blocks.

    Raises:
        ValueError: the count is negative.
    """
    expect(count >= 0, "count", count, "0 or more")
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter(-1, order, True)
    if forced is not None:
        chosen = chosen | forced
    return chosen & (scores > float("-inf"))


def select_top_p(
    scores: torch.Tensor,
    share: float,
    *,
    scope: str = "row",
    segment: torch.Tensor | None = None,
    forced: torch.Tensor | None = None,
) -> torch.Tensor:
    """Select the best blocks that together hold a share of the score: VMoBA's threshold (arXiv 2506.23858).

    Scores are normalized to 0..1 and ranked within a group; the shortest prefix of the ranking that reaches the share
    is selected. Forced blocks rank first.

    Args:
        scores: [H, Tq, C]; a block of score -inf is never selected.
        share: the share of the group's total score, above 0 and at most 1.
        scope: the group: "row" for each query, or "head" for all queries of a head and a segment.
        segment: integers [Tq], each query's segment, for the scope "head"; None for one segment.
        forced: boolean, broadcastable to `scores`: blocks that are always selected.

    Returns:
        boolean [H, Tq, C], the selected blocks.

    Raises:
        ValueError: the share or the scope is out of range.
    """
    expect(0 < share <= 1, "share", share, "more than 0, at most 1")
    expect(scope in ("row", "head"), "scope", repr(scope), "'row' or 'head'")
    is_present = scores > float("-inf")
    heads, queries, count = scores.shape
    if scope == "row":
        group = torch.arange(queries, device=scores.device)[:, None].expand(queries, count)
        groups = queries
    else:
        segment = torch.zeros(queries, dtype=torch.int64, device=scores.device) if segment is None else segment.long()
        group = (segment + 1)[:, None].expand(queries, count)
        groups = queries + 2
    group = group.reshape(1, -1).expand(heads, -1)  # [H, Tq C]
    flat, valid = scores.reshape(heads, -1), is_present.reshape(heads, -1)
    least = _by_group(flat.masked_fill(~valid, float("inf")), group, groups, "amin")
    greatest = _by_group(flat.masked_fill(~valid, float("-inf")), group, groups, "amax")
    spread = (greatest - least).clamp(min=torch.finfo(flat.dtype).tiny)
    weight = torch.where(valid, (flat - least.gather(1, group)) / spread.gather(1, group), 0.0)
    weight = torch.where((greatest == least).gather(1, group) & valid, 1.0, weight)
    rank = weight
    kept = None if forced is None else forced.expand(scores.shape).reshape(heads, -1) & valid
    if kept is not None:
        rank = torch.where(kept, 2.0, weight)
    order = rank.masked_fill(~valid, -1.0).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, group.gather(1, order).sort(dim=1, stable=True).indices)
    sorted_group, sorted_weight = group.gather(1, order), weight.gather(1, order).double()
    total = _by_group(sorted_weight, sorted_group, groups, "sum")
    weight_before = sorted_weight.cumsum(1) - sorted_weight
    weight_before_group = total.cumsum(1) - total
    reached = weight_before - weight_before_group.gather(1, sorted_group) >= share * total.gather(1, sorted_group)
    chosen = torch.zeros_like(valid).scatter(1, order, ~reached) & valid
    if kept is not None:
        chosen = chosen | kept
    return chosen.reshape(scores.shape)


def _by_group(values: torch.Tensor, group: torch.Tensor, groups: int, how: str) -> torch.Tensor:
    """Reduce values [H, n] to [H, groups]; sums expect the groups in sorted order."""
    if how == "sum":
        sums = torch.cat([values.new_zeros(len(values), 1), values.cumsum(1)], 1)
        edges = torch.arange(groups, device=values.device).expand(len(values), -1).contiguous()
        first = torch.searchsorted(group.contiguous(), edges)
        last = torch.searchsorted(group.contiguous(), edges, right=True)
        return sums.gather(1, last) - sums.gather(1, first)
    empty = values.new_full((len(values), groups), float("inf") if how == "amin" else float("-inf"))
    return empty.scatter_reduce(1, group, values, how)


def top_k_key_bias(score: torch.Tensor, count: int, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Keep the `count` best keys of each segment: the key mask of Dynamic Mask Attention (arXiv 2508.02124).

    Args:
        score: [H, Tk], differentiable where a key is kept.
        count: keys of each segment.
        offsets: int32 [N + 1], where segments begin and end; None for one segment.

    Returns:
        The bias [H, Tk]: the score of the best keys, -inf for all others.

    Raises:
        ValueError: the count is negative, or the score has no two dimensions.
    """
    expect(count >= 0, "count", count, "0 or more")
    expect(score.dim() == 2, "score", list(score.shape), "the shape [H, Tk]")
    tokens = score.shape[1]
    position = torch.arange(tokens, device=score.device)
    ends = offsets[1:] if offsets is not None else torch.full((1,), tokens, device=score.device)
    segment = torch.searchsorted(ends.contiguous(), position, right=True).expand_as(score)
    order = score.detach().sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, segment.gather(1, order).sort(dim=1, stable=True).indices)
    starts = torch.cat([ends.new_zeros(1), ends])
    rank = torch.empty_like(order).scatter(1, order, position.expand_as(order)) - starts[segment]
    return score.masked_fill(rank >= count, float("-inf"))
