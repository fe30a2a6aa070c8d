"""Choosing blocks of keys for queries: scores, the best of them, and how a choice is handed to attention."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.checks import expect, expect_tensor
from .blocks import Blocks


class Selection(NamedTuple):
    """Which blocks each query chose; attention is exact on them, token by token.

    `words`: int32 [H, Tq, W], bit n set where the query chose block n of its segment; H divides the query heads.
    `block`: int32 [Tk], each key's block within its segment, -1 for one that is seen without being chosen.
    `block_size`: so many consecutive keys, counted from their segment's start, surely belong to one block.
    """

    words: torch.Tensor
    block: torch.Tensor
    block_size: int


def pack_selection(chosen: torch.Tensor, blocks: Blocks, always_visible: torch.Tensor | None = None) -> Selection:
    """Return the selection of `chosen`, boolean [H, Tq, C]: which of the C blocks of its segment each query chose.

    `always_visible`: boolean [Tk], keys that are seen unchosen, such as those of the instruction.
    """
    expect_tensor(chosen, "chosen", shape=(None, None, blocks.max_per_segment), dtypes=(torch.bool,))
    words = -(-chosen.shape[-1] // 32)
    bits = torch.nn.functional.pad(chosen.long(), (0, words * 32 - chosen.shape[-1])).unflatten(-1, (words, 32))
    packed = (bits << torch.arange(32, device=chosen.device)).sum(-1)
    # The last bit is the sign: the sum is brought into the range of 32 bits before it is cast.
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    if always_visible is None:
        return Selection(packed.contiguous(), blocks.block_in_segment.int().contiguous(), blocks.size)
    expect_tensor(
        always_visible, "always", shape=(blocks.block_in_segment.shape[0],), dtypes=(torch.bool,), device=chosen.device
    )
    return Selection(packed.contiguous(), blocks.block_in_segment.masked_fill(always_visible, -1).int().contiguous(), 1)


def complement(selection: Selection, blocks: torch.Tensor) -> Selection:
    """Return the selection of what was not chosen, for keys that each stand for a whole block.

    `blocks`: integers [Tk], the block that each of these keys stands for.
    """
    return Selection(~selection.words, blocks.int().contiguous(), 1)


def block_scores(query: torch.Tensor, pooled: torch.Tensor, blocks: Blocks, segment: torch.Tensor) -> torch.Tensor:
    """Return how well each query's segment's blocks fit it, float32 [HQ, Tq, C]; -inf where there is no such block.

    `query` [Tq, HQ, D], `pooled` [n, HK, D] the blocks' means, `segment` [Tq] each query's; C is `blocks.max_per_segment`.
    The dot product is unscaled, as in VMoBA (arXiv 2506.23858).
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
    all_scores = torch.einsum("thd,nhd->htn", query.float(), pooled.float().repeat_interleave(group, 1))
    number = blocks.first[segment.clamp(min=0)][:, None] + torch.arange(blocks.max_per_segment, device=query.device)
    is_present = (
        torch.arange(blocks.max_per_segment, device=query.device) < blocks.count[segment.clamp(min=0)][:, None]
    ) & (segment[:, None] >= 0)
    number = number.clamp(max=pooled.shape[0] - 1)
    scores = all_scores.gather(2, number.long().expand(len(all_scores), -1, -1))
    return scores.masked_fill(~is_present, float("-inf"))


def select_top_k(scores: torch.Tensor, count: int, forced: torch.Tensor | None = None) -> torch.Tensor:
    """Return each query's `count` best blocks, boolean [H, Tq, C], and those `forced` (boolean, broadcast).

    Blocks of score -inf are never chosen. Ties go to the same block every time.
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
    """Return the best blocks that together hold `share` of the score, boolean [H, Tq, C].

    Scores are stretched to 0..1 and ranked within each query ("row") or among all queries of a head and of a segment
    ("head", with `segment` [Tq]); chosen is the shortest beginning of the ranking that reaches the share, the forced
    ones counted first. This is VMoBA's threshold (arXiv 2506.23858).
    """
    expect(0 < share <= 1, "share", share, "more than 0, at most 1")
    expect(scope in ("row", "head"), "scope", repr(scope), "'row' or 'head'")
    is_present = scores > float("-inf")
    heads, queries, count = scores.shape
    if scope == "row":
        group = torch.arange(queries, device=scores.device)[:, None].expand(queries, count)
        groups = queries
    else:
        number = torch.zeros(queries, dtype=torch.int64, device=scores.device) if segment is None else segment.long()
        group = (number + 1)[:, None].expand(queries, count)
        groups = queries + 2
    group = group.reshape(1, -1).expand(heads, -1)
    flat, valid = scores.reshape(heads, -1), is_present.reshape(heads, -1)
    least = _by_group(flat.masked_fill(~valid, float("inf")), group, groups, "amin")
    greatest = _by_group(flat.masked_fill(~valid, float("-inf")), group, groups, "amax")
    spread = (greatest - least).clamp(min=torch.finfo(flat.dtype).tiny)
    weight = torch.where(valid, (flat - least.gather(1, group)) / spread.gather(1, group), 0.0)
    weight = torch.where((greatest == least).gather(1, group) & valid, 1.0, weight)
    rank = weight
    if forced is not None:
        kept = forced.expand(scores.shape).reshape(heads, -1) & valid
        rank = torch.where(kept, 2.0, weight)
    order = rank.masked_fill(~valid, -1.0).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, group.gather(1, order).sort(dim=1, stable=True).indices)
    sorted_group, sorted_weight = group.gather(1, order), weight.gather(1, order).double()
    total = _by_group(sorted_weight, sorted_group, groups, "sum")
    weight_before = sorted_weight.cumsum(1) - sorted_weight
    weight_before_group = total.cumsum(1) - total
    reached = weight_before - weight_before_group.gather(1, sorted_group) >= share * total.gather(1, sorted_group)
    chosen = torch.zeros_like(valid).scatter(1, order, ~reached) & valid
    if forced is not None:
        chosen = chosen | kept
    return chosen.reshape(scores.shape)


def _by_group(values: torch.Tensor, group: torch.Tensor, groups: int, how: str) -> torch.Tensor:
    """Reduce values [H, n] to [H, groups]; sums are taken over sorted groups, in their order."""
    if how == "sum":
        sums = torch.cat([values.new_zeros(len(values), 1), values.cumsum(1)], 1)
        edges = torch.arange(groups, device=values.device).expand(len(values), -1).contiguous()
        first = torch.searchsorted(group.contiguous(), edges)
        last = torch.searchsorted(group.contiguous(), edges, right=True)
        return sums.gather(1, last) - sums.gather(1, first)
    empty = values.new_full((len(values), groups), float("inf") if how == "amin" else float("-inf"))
    return empty.scatter_reduce(1, group, values, how)


def top_k_key_bias(score: torch.Tensor, count: int, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Return the bias of the `count` best keys of each segment: their score, -inf for all others, [H, Tk].

    `score`: [H, Tk], differentiable where a key is kept; `offsets`: int32 [N + 1], None for one segment. This is the
    key mask of Dynamic Mask Attention (arXiv 2508.02124).
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
