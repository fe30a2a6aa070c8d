"""Block-sparse attention in plain torch with a backward pass of its own, for machines without a GPU.

Segments are computed one by one, or as one batch where they are equally long, so that no scores of different segments
are computed.
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
        queries = _as_batch(query, rows, count)  # [count, HQ, rows, D]
        keys, values = (_as_batch(part, columns, count) for part in (key, value))  # [count, HK, columns, D]
        score = _score(queries, keys, bias, plan, rows, columns, count, scale)  # [count, HQ, rows, columns]
        row_max = score.amax(-1, keepdim=True)
        # A row that sees nothing has a maximum of -inf, and -inf - -inf is NaN.
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
    query_gradient, key_gradient, value_gradient = (
        torch.zeros(part.shape, dtype=part.dtype, device=part.device) for part in (query, key, value)
    )
    bias_gradient = torch.zeros(
        0 if bias is None else bias.shape[0], key.shape[0], dtype=log_sum_exp.dtype, device=key.device
    )
    for rows, columns, count in segments(plan):
        queries = _as_batch(query, rows, count)  # [count, HQ, rows, D]
        keys, values = (_as_batch(part, columns, count) for part in (key, value))  # [count, HK, columns, D]
        output_gradient_rows = _as_batch(output_gradient, rows, count)
        row_log_sum_exp = _row_values(log_sum_exp, rows, count)  # [count, HQ, rows, 1]
        # A row that saw nothing has no log-sum-exp: ignore its gradient, which may be NaN.
        log_sum_exp_gradient_rows = _row_values(log_sum_exp_gradient, rows, count).masked_fill(
            row_log_sum_exp == float("-inf"), 0.0
        )
        product = output_gradient_rows * _as_batch(output, rows, count)
        row_delta = product.sum(-1, keepdim=True) - log_sum_exp_gradient_rows  # [count, HQ, rows, 1]
        score = _score(queries, keys, bias, plan, rows, columns, count, scale)  # [count, HQ, rows, columns]
        weight = _group_heads(
            score.sub_(row_log_sum_exp.masked_fill(row_log_sum_exp == float("-inf"), 0.0)).exp_(), keys
        )
        output_gradient_rows = _group_heads(output_gradient_rows, keys)
        score_gradient = (output_gradient_rows @ values[:, :, None].mT).sub_(_group_heads(row_delta, keys)).mul_(weight)
        query_gradient[rows] = _pack((score_gradient @ keys[:, :, None]).flatten(1, 2) * scale, query)
        key_gradient[columns] = _pack((score_gradient.mT @ _group_heads(queries, keys)).sum(2) * scale, key)
        value_gradient[columns] = _pack((weight.mT @ output_gradient_rows).sum(2), value)
        if bias is not None:
            head_bias_gradient = score_gradient.flatten(1, 2).sum(2).unflatten(1, (bias.shape[0], -1)).sum(2)
            bias_gradient[:, columns] = head_bias_gradient.movedim(0, 1).flatten(1)
    return query_gradient, key_gradient, value_gradient, bias_gradient


def segments(plan: AttentionPlan) -> Iterator[tuple[slice, slice, int]]:
    """Yield the rows (queries) and columns (keys) of segments that are computed together, and their number."""
    spans = []
    for tiles in (plan.query_tiles, plan.key_tiles):
        span_of_segment: dict[int, list[int]] = {}
        for start, length, segment in tiles.tolist():
            if length and segment >= 0:
                span_of_segment.setdefault(segment, [start, start])[1] = start + length
        spans.append(span_of_segment)
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


def _score(
    queries: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor | None,
    plan: AttentionPlan,
    rows: slice,
    columns: slice,
    count: int,
    scale: float,
) -> torch.Tensor:
    """Return the scores [count, HQ, rows, columns], -inf where a query does not see a key."""
    score = ((_group_heads(queries, keys) * scale) @ keys[:, :, None].mT).flatten(1, 2)
    if bias is not None:
        bias_rows = bias[:, columns].to(score.dtype).unflatten(1, (count, -1)).movedim(1, 0)
        score.unflatten(1, (bias.shape[0], -1)).add_(bias_rows[:, :, None, None])
    unseen = hidden_pairs(plan, rows, columns, count)
    score.unflatten(1, (unseen.shape[1], -1)).masked_fill_(unseen[:, :, None], float("-inf"))
    return score


def hidden_pairs(plan: AttentionPlan, rows: slice, columns: slice, count: int) -> torch.Tensor:
    """Return the keys that each query does not see, boolean [count, H, rows, columns].

    The `count` segments are computed together.
    """

    def split_segments(values):
        return values.unflatten(-1, (count, -1))

    low, high = (split_segments(bound[:, rows]) for bound in (plan.low, plan.high))  # [P, count, rows]
    level = split_segments(plan.level[:, columns])  # [P, count, columns]
    unseen = torch.zeros(count, low.shape[2], level.shape[2], dtype=torch.bool)
    for channel in range(low.shape[0]):
        levels = level[channel][:, None]
        unseen |= levels < low[channel][..., None]
        unseen |= levels > high[channel][..., None]
    if plan.selection_bits is None or plan.block is None:
        return unseen[:, None]
    selection_bits = plan.selection_bits[:, rows].unflatten(1, (count, -1)).movedim(1, 0)
    block = split_segments(plan.block[columns])
    word = (block.clamp(min=0) // 32).clamp(max=selection_bits.shape[-1] - 1)
    in_range = (block < 32 * selection_bits.shape[-1])[:, None, None]
    index = word.long()[:, None, None].expand(-1, selection_bits.shape[1], selection_bits.shape[2], -1)
    bit = (selection_bits.gather(-1, index) >> (block.clamp(min=0) % 32)[:, None, None]) & 1
    return unseen[:, None] | ~(((bit == 1) & in_range) | (block < 0)[:, None, None])
