"""The public functions of block-sparse attention: over packed tokens, and over batches."""

from __future__ import annotations

import torch

from ..common.checks import FLOATS, expect, expect_tensor
from ..common.dispatch import runs_in_triton
from ..plan.attention_plan import AttentionPlan
from .operator import attend

MAX_HEAD_SIZE = 256


def block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    splits: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention over packed tokens with the mask of a plan.

    Triton computes on a GPU, torch on a CPU. Both results are differentiable in query, key, value and bias. Scores and
    the log-sum-exp are float32, or float64 for inputs of that dtype. Keys that no query sees may hold any finite
    numbers.

    Args:
        query: [Tq, HQ, D], float32, bfloat16, float16, or on the CPU float64; D is at most 256.
        key: [Tk, HK, D], of the query's dtype; HK divides HQ.
        value: [Tk, HK, D], of the query's dtype.
        plan: the mask, from `build_plan`.
        bias: [HB, Tk], added to every score of a key, -inf to hide it; HB divides HQ.
        scale: factor of the scores; 1/sqrt(D) by default.
        splits: splits of the keys that are computed in parallel and combined, for few queries; 0 chooses by shape.

    Returns:
        The output [Tq, HQ, D] and the log-sum-exp [HQ, Tq]. A query that sees nothing has output 0 and log-sum-exp
        -inf, and no gradient.

    Raises:
        ValueError: a shape, dtype or device differs, or a number of heads does not divide HQ.

    Example:
        plan = build_plan(*causal(len(query)))
        output, log_sum_exp = block_sparse_attention(query, key, value, plan)
    """
    expect_tensor(query, "query", shape=(plan.low.shape[1], None, None), dtypes=FLOATS, device=plan.low.device)
    exact = query.dtype == torch.float64
    expect(not exact or not runs_in_triton(query), "query", "float64", "float32, bfloat16 or float16 on a GPU")
    heads, head_size = query.shape[1:]
    expect(heads >= 1, "query", heads, "1 or more", unit="heads")
    expect(1 <= head_size <= MAX_HEAD_SIZE, "query", head_size, f"1 to {MAX_HEAD_SIZE}", unit="numbers in a head")
    same = (query.dtype,)
    expect_tensor(key, "key", shape=(plan.level.shape[1], None, head_size), dtypes=same, device=query.device)
    expect_tensor(value, "value", shape=key.shape, dtypes=same, device=query.device)
    for count, argument in ((key.shape[1], "key"), (plan.row_counts.shape[0], "plan")):
        expect(count > 0 and heads % count == 0, argument, count, "a divisor of the query's number", unit="heads")
    if bias is not None:
        expect_tensor(bias, "bias", shape=(None, key.shape[0]), dtypes=FLOATS, device=query.device)
        count = bias.shape[0]
        expect(count > 0 and heads % count == 0, "bias", count, "a divisor of the query's number", unit="heads")
        bias = bias.to(torch.float64 if exact else torch.float32).contiguous()
    expect(splits >= 0, "splits", splits, "0 or more")
    return attend(query, key, value, bias, *plan, head_size**-0.5 if scale is None else float(scale), splits)


def batched_block_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    splits: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention over a batch of equally long samples.

    Dtypes and errors are those of `block_sparse_attention`. Tensors that were transposed from [B, S, H, D] are not
    copied.

    Args:
        query: [B, HQ, Sq, D].
        key: [B, HK, Sk, D].
        value: [B, HK, Sk, D].
        plan: the mask, from `batch_plan`.
        bias: [B, HB, Sk].
        scale: As in `block_sparse_attention`.
        splits: As in `block_sparse_attention`.

    Returns:
        The output [B, HQ, Sq, D] and the log-sum-exp [B, HQ, Sq].
    """
    expect_tensor(query, "query", shape=(None,) * 4, dtypes=FLOATS)
    expect_tensor(key, "key", shape=(query.shape[0], None, None, query.shape[3]), dtypes=(query.dtype,))
    expect_tensor(value, "value", shape=key.shape, dtypes=(query.dtype,))
    batch, _, rows, _ = query.shape
    segments = plan.query_tiles.shape[0] - plan.low.shape[1] // plan.query_tile - 1
    expect(segments == batch, "plan", segments, batch, unit="members of a batch")
    if bias is not None:
        expect_tensor(bias, "bias", shape=(batch, None, key.shape[2]), dtypes=FLOATS)
        bias = bias.transpose(0, 1).flatten(1)
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))  # [B S, H, D]
    output, log_sum_exp = block_sparse_attention(query, key, value, plan, bias=bias, scale=scale, splits=splits)
    output = output.unflatten(0, (batch, rows)).transpose(1, 2)  # [B, HQ, Sq, D]
    return output, log_sum_exp.unflatten(1, (batch, rows)).transpose(0, 1)
