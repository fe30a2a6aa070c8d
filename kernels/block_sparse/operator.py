"""Block-sparse attention as a torch operator: dispatch, gradients, and shapes for compilers."""

from __future__ import annotations

import torch

from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator
from ..plan.attention_plan import AttentionPlan
from . import torch_path

Tensor = torch.Tensor


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of scores, their sums, and the bias: float32, or float64 for tensors of that dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _fake(query, key, value, bias, *_):
    log_sum_exp = query.new_empty((query.shape[1], query.shape[0]), dtype=exact_dtype(query))
    return query.new_empty(query.shape), log_sum_exp


def _fake_backward(output_gradient, log_sum_exp_gradient, query, key, value, output, log_sum_exp, bias, *_):
    heads = 0 if bias is None else bias.shape[0]
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        query.new_empty((heads, key.shape[0]), dtype=exact_dtype(query)),
    )


@operator("block_sparse_attention_backward", fake=_fake_backward)
def attend_backward(
    output_gradient: Tensor,
    log_sum_exp_gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    bias: Tensor | None,
    low: Tensor,
    high: Tensor,
    level: Tensor,
    selection_bits: Tensor | None,
    block: Tensor | None,
    query_tiles: Tensor,
    key_tiles: Tensor,
    row_counts: Tensor,
    row_lists: Tensor,
    column_counts: Tensor,
    column_lists: Tensor,
    query_tile: int,
    key_tile: int,
    aligned: bool,
    scale: float,
    splits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key, value and bias; the last is empty without a bias."""
    plan = AttentionPlan(
        low,
        high,
        level,
        selection_bits,
        block,
        query_tiles,
        key_tiles,
        row_counts,
        row_lists,
        column_counts,
        column_lists,
        query_tile,
        key_tile,
        aligned,
    )
    arguments = (output_gradient, log_sum_exp_gradient, query, key, value, output, log_sum_exp, bias, plan, scale)
    if runs_in_triton(query):
        from .launch import launch_backward

        with device_of(query):
            return launch_backward(*arguments, splits)
    return torch_path.backward(*arguments)


def _setup_context(ctx, inputs, output) -> None:
    query, key, value, bias, *plan = inputs
    *tensors, query_tile, key_tile, aligned, scale, splits = plan
    ctx.save_for_backward(query, key, value, *output, bias, *tensors)
    ctx.numbers = (query_tile, key_tile, aligned, scale, splits)


def _backward(ctx, output_gradient, log_sum_exp_gradient) -> tuple:
    query, key, value, output, log_sum_exp, bias, *tensors = ctx.saved_tensors
    query_gradient, key_gradient, value_gradient, bias_gradient = attend_backward(
        output_gradient,
        log_sum_exp_gradient,
        query,
        key,
        value,
        output,
        log_sum_exp,
        bias,
        *tensors,
        *ctx.numbers,
    )
    bias_gradient_or_none = bias_gradient if bias is not None else None
    return query_gradient, key_gradient, value_gradient, bias_gradient_or_none, *[None] * 16


@operator("block_sparse_attention", fake=_fake, gradients=_backward, setup_context=_setup_context)
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    low: Tensor,
    high: Tensor,
    level: Tensor,
    selection_bits: Tensor | None,
    block: Tensor | None,
    query_tiles: Tensor,
    key_tiles: Tensor,
    row_counts: Tensor,
    row_lists: Tensor,
    column_counts: Tensor,
    column_lists: Tensor,
    query_tile: int,
    key_tile: int,
    aligned: bool,
    scale: float,
    splits: int,
) -> tuple[Tensor, Tensor]:
    """Return output [Tq, HQ, D] and log-sum-exp [HQ, Tq]; the arguments after `bias` are the plan's fields."""
    plan = AttentionPlan(
        low,
        high,
        level,
        selection_bits,
        block,
        query_tiles,
        key_tiles,
        row_counts,
        row_lists,
        column_counts,
        column_lists,
        query_tile,
        key_tile,
        aligned,
    )
    if runs_in_triton(query):
        from .launch import launch_forward

        with device_of(query):
            return launch_forward(query, key, value, bias, plan, scale, splits)
    return torch_path.forward(query, key, value, bias, plan, scale)
