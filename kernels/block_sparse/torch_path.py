"""Block-sparse attention in plain torch, for machines without a GPU, with its own gradients.

Segments are computed one by one, or all at once where they are equally long, so that nothing is spent on pairs of
different segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from ..plan.attention_plan import AttentionPlan


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    plan: AttentionPlan,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [Tq, HQ, D] and log-sum-exp [HQ, Tq]."""
    output = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    sums = torch.float64 if query.dtype == torch.float64 else torch.float32
    log_sum_exp = query.new_full((query.shape[1], query.shape[0]), float("-inf"), dtype=sums)
    for rows, columns, count in segments(plan):
        queries, keys, values = (
            _as_batch(query, rows, count),
            _as_batch(key, columns, count),
            _as_batch(value, columns, count),
        )
        score = _score(queries, keys, bias, plan, rows, columns, count, scale)
        row_max = score.amax(-1, keepdim=True)
        # A row that sees nothing stays at minus infinity, whose difference to itself is no number.
        finite_max = row_max.masked_fill_(row_max == float("-inf"), 0.0)
        weight = score.sub_(finite_max).exp_()
        row_sum = weight.sum(-1, keepdim=True)
        accumulator = (_group_heads(weight, keys) @ values[:, :, None]).flatten(1, 2)
        output[rows] = _pack(accumulator / row_sum.masked_fill(row_sum == 0, 1.0), query)
        log_sum_exp[:, rows] = (finite_max + row_sum.log())[..., 0].movedim(0, 1).flatten(1)
    return output, log_sum_exp


def backward(
    output_gradient: torch.Tensor,
    log_sum_exp_gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sum_exp: torch.Tensor,
    bias: torch.Tensor | None,
    plan: AttentionPlan,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key, value and bias; the last is empty without a bias."""
    gradients = [torch.zeros(part.shape, dtype=part.dtype, device=part.device) for part in (query, key, value)]
    bias_gradient = torch.zeros(
        0 if bias is None else bias.shape[0], key.shape[0], dtype=log_sum_exp.dtype, device=key.device
    )
    for rows, columns, count in segments(plan):
        queries, keys, values = (
            _as_batch(query, rows, count),
            _as_batch(key, columns, count),
            _as_batch(value, columns, count),
        )
        output_gradient_rows = _as_batch(output_gradient, rows, count)
        found = _row_values(log_sum_exp, rows, count)
        # A row that saw nothing has no log-sum-exp to move, whatever gradient reaches it.
        log_sum_exp_gradient_rows = _row_values(log_sum_exp_gradient, rows, count).masked_fill(
            found == float("-inf"), 0.0
        )
        row_delta = (output_gradient_rows * _as_batch(output, rows, count)).sum(
            -1, keepdim=True
        ) - log_sum_exp_gradient_rows
        score = _score(queries, keys, bias, plan, rows, columns, count, scale)
        weight = _group_heads(score.sub_(found.masked_fill(found == float("-inf"), 0.0)).exp_(), keys)
        output_gradient_rows = _group_heads(output_gradient_rows, keys)
        score_gradient = (output_gradient_rows @ values[:, :, None].mT).sub_(_group_heads(row_delta, keys)).mul_(weight)
        gradients[0][rows] = _pack((score_gradient @ keys[:, :, None]).flatten(1, 2) * scale, query)
        gradients[1][columns] = _pack((score_gradient.mT @ _group_heads(queries, keys)).sum(2) * scale, key)
        gradients[2][columns] = _pack((weight.mT @ output_gradient_rows).sum(2), value)
        if bias is not None:
            head_bias_gradient = score_gradient.flatten(1, 2).sum(2).unflatten(1, (bias.shape[0], -1)).sum(2)
            bias_gradient[:, columns] = head_bias_gradient.movedim(0, 1).flatten(1)
    return *gradients, bias_gradient


def segments(plan: AttentionPlan) -> Iterator[tuple[slice, slice, int]]:
    """Yield where queries and keys of segments stand that are computed together, and how many they are."""
    spans = []
    for tiles in (plan.query_tiles, plan.key_tiles):
        found: dict[int, list[int]] = {}
        for start, length, segment in tiles.tolist():
            if length and segment >= 0:
                found.setdefault(segment, [start, start])[1] = start + length
        spans.append(found)
    both = sorted(spans[0].keys() & spans[1].keys())
    pairs = [(spans[0][segment], spans[1][segment]) for segment in both]
    lengths = {(rows[1] - rows[0], columns[1] - columns[0]) for rows, columns in pairs}
    adjacent = all(
        left[1] == right[0]
        for before, after in itertools.pairwise(pairs)
        for left, right in zip(before, after, strict=True)
    )
    if pairs and len(lengths) == 1 and adjacent:
        yield slice(pairs[0][0][0], pairs[-1][0][1]), slice(pairs[0][1][0], pairs[-1][1][1]), len(pairs)
        return
    for rows, columns in pairs:
        yield slice(*rows), slice(*columns), 1


def _as_batch(tokens: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    """Return [count, heads, rows, D] in at least float32."""
    tokens = tokens[rows].unflatten(0, (count, -1)).transpose(1, 2)
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def _group_heads(tensor: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return [n, HQ, ...] as [n, HK, HQ / HK, ...]."""
    return tensor.unflatten(1, (keys.shape[1], -1))


def _row_values(values: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    """Return values [HQ, Tq] as [count, HQ, rows, 1]."""
    return values[:, rows].unflatten(1, (count, -1)).movedim(1, 0)[..., None]


def _pack(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return [n, heads, rows, D] as [n * rows, heads, D]."""
    return tokens.transpose(1, 2).flatten(0, 1).to(like.dtype)


def _score(queries, keys, bias, plan, rows, columns, count, scale) -> torch.Tensor:
    """Return the scores [count, HQ, rows, columns], minus infinity where a query does not see a key."""
    score = ((_group_heads(queries, keys) * scale) @ keys[:, :, None].mT).flatten(1, 2)
    if bias is not None:
        bias_rows = bias[:, columns].to(score.dtype).unflatten(1, (count, -1)).movedim(1, 0)
        score.unflatten(1, (bias.shape[0], -1)).add_(bias_rows[:, :, None, None])
    unseen = hidden_pairs(plan, rows, columns, count)
    score.unflatten(1, (unseen.shape[1], -1)).masked_fill_(unseen[:, :, None], float("-inf"))
    return score


def hidden_pairs(plan: AttentionPlan, rows: slice, columns: slice, count: int) -> torch.Tensor:
    """Return which keys each query does not see, [count, H, rows, columns], of segments that are computed together."""

    def split_segments(values):
        return values.unflatten(-1, (count, -1))

    low, high, level = (
        split_segments(plan.low[:, rows]),
        split_segments(plan.high[:, rows]),
        split_segments(plan.level[:, columns]),
    )
    unseen = torch.zeros(count, low.shape[2], level.shape[2], dtype=torch.bool)
    for channel in range(low.shape[0]):
        levels = level[channel][:, None]
        unseen |= levels < low[channel][..., None]
        unseen |= levels > high[channel][..., None]
    if plan.selection_bits is None:
        return unseen[:, None]
    selection_bits = plan.selection_bits[:, rows].unflatten(1, (count, -1)).movedim(1, 0)
    block = split_segments(plan.block[columns])
    place = (block.clamp(min=0) // 32).clamp(max=selection_bits.shape[-1] - 1)
    in_range = (block < 32 * selection_bits.shape[-1])[:, None, None]
    index = place.long()[:, None, None].expand(-1, selection_bits.shape[1], selection_bits.shape[2], -1)
    bit = (selection_bits.gather(-1, index) >> (block.clamp(min=0) % 32)[:, None, None]) & 1
    return unseen[:, None] | ~(((bit == 1) & in_range) | (block < 0)[:, None, None])
