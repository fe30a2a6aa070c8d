"""The public functions of block-sparse attention: over packed tokens, and over batches."""

from __future__ import annotations

import torch

from ..common.checks import expect, expect_tensor
from ..common.dispatch import runs_in_triton
from ..plan.attention_plan import AttentionPlan
from .operator import attend

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
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
    """Attend over packed tokens as `plan` says; return the output [Tq, HQ, D] and the log-sum-exp [HQ, Tq].

    `query` [Tq, HQ, D], `key` and `value` [Tk, HK, D], all float32, bfloat16 or float16 (on the CPU float64 too), HK a
    divisor of HQ, D at most 256. `bias`: [HB, Tk], added to every score of a key, -inf to hide it; HB divides HQ.
    `scale` defaults to 1/sqrt(D). `splits`: shares of the keys that are attended to side by side and joined, for few
    queries; 0 chooses by shape. Both results are differentiable, in all four inputs. A query that sees nothing has
    output 0 and log-sum-exp -inf, and no gradient. On a GPU Triton computes, on a CPU torch does; scores and the
    log-sum-exp are float32, or float64 for that dtype. Keys that no query sees may
    hold any finite numbers. Raises ValueError for what does not fit.
    """
    expect_tensor(query, "query", shape=(plan.low.shape[1], None, None), dtypes=FLOATS, device=plan.low.device)
    exact = query.dtype == torch.float64
    expect(not exact or not runs_in_triton(query), "query", "float64", "a shorter dtype, which kernels take")
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
    """Attend with `query` [B, HQ, Sq, D] to `key`, `value` [B, HK, Sk, D]; return [B, HQ, Sq, D] and [B, HQ, Sq].

    `plan` from `batch_plan`; `bias`: [B, HB, Sk]. Everything else is as in `block_sparse_attention`. Tensors that were
    [B, S, H, D] before they were turned are not copied.
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
    packed = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    output, log_sum_exp = block_sparse_attention(*packed, plan, bias=bias, scale=scale, splits=splits)
    output = output.unflatten(0, (batch, rows)).transpose(1, 2)
    return output, log_sum_exp.unflatten(1, (batch, rows)).transpose(0, 1)
