"""Launch the block-sparse attention kernels; importing this module imports Triton."""

from __future__ import annotations

from typing import Any

import torch

from ..common.dispatch import is_interpreted
from ..common.launch import ceil_divide, launcher
from ..plan.attention_plan import AttentionPlan
from .configuration import kernel_config, padded_size
from .kernel_backward import delta_kernel, key_gradient_kernel, query_gradient_kernel
from .kernel_forward import combine_kernel, forward_kernel

MAX_SPLITS = 32
"""Most splits of the keys of a query tile."""
ROWS_PER_PROGRAM = 32
"""Queries of a program in the kernels that go through rows."""


def choose_splits(query: torch.Tensor, plan: AttentionPlan) -> int:
    """Return the number of splits of a query tile's keys: enough that every multiprocessor has work.

    It depends on shapes only, so that the same call always sums in the same order.
    """
    if not query.is_cuda:
        return 1
    programs = plan.query_tiles.shape[0] * query.shape[1]
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    return max(1, min(2 * processors // max(programs, 1), plan.key_tiles.shape[0], MAX_SPLITS))


def launch_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    plan: AttentionPlan,
    scale: float,
    splits: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [Tq, HQ, D] and log-sum-exp [HQ, Tq]; `splits` 0 chooses by shape."""
    query, key, value = map(_rows_contiguous, (query, key, value))
    queries, heads, head_size = query.shape
    output = query.new_empty(query.shape)
    log_sum_exp = torch.empty(heads, queries, dtype=torch.float32, device=query.device)
    splits = splits or choose_splits(query, plan)
    part, part_log_sum_exp = output, log_sum_exp
    if splits > 1:
        part = torch.empty(splits, *output.shape, dtype=torch.float32, device=query.device)
        part_log_sum_exp = torch.empty(splits, heads, queries, dtype=torch.float32, device=query.device)
    constants = _constants("forward", query, key, bias, plan)
    parts = plan.query_tiles.shape[0] * (plan.query_tile // constants["OUTER_TILE"])
    launcher(forward_kernel, (parts, heads, splits))(
        query,
        key,
        value,
        part,
        part_log_sum_exp,
        plan.query_tiles,
        plan.key_tiles,
        plan.row_counts,
        plan.row_lists,
        **_mask_arguments(query, key, value, bias, plan, scale),
        **constants,
    )
    if splits > 1 and queries:
        launcher(combine_kernel, (ceil_divide(queries, ROWS_PER_PROGRAM), heads))(
            part,
            part_log_sum_exp,
            output,
            log_sum_exp,
            queries,
            splits,
            HEADS=heads,
            HEAD_SIZE=head_size,
            PADDED_SIZE=padded_size(head_size),
            ROWS=ROWS_PER_PROGRAM,
        )
    return output, log_sum_exp


def launch_backward(
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
    splits: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key, value and bias; the last is empty without a bias."""
    query, key, value = map(_rows_contiguous, (query, key, value))
    output_gradient, log_sum_exp_gradient = output_gradient.contiguous(), log_sum_exp_gradient.contiguous()
    queries, heads, head_size = query.shape
    keys, key_heads, _ = key.shape
    delta = torch.empty_like(log_sum_exp)
    if queries:
        launcher(delta_kernel, (ceil_divide(queries, ROWS_PER_PROGRAM), heads))(
            output,
            output_gradient,
            log_sum_exp,
            log_sum_exp_gradient,
            delta,
            queries,
            HEADS=heads,
            HEAD_SIZE=head_size,
            PADDED_SIZE=padded_size(head_size),
            ROWS=ROWS_PER_PROGRAM,
            UPCAST=is_interpreted(),
        )
    splits = splits or choose_splits(query, plan)
    query_gradient = query.new_empty(query.shape)
    part = query_gradient
    if splits > 1:
        part = torch.empty(splits, *query.shape, dtype=torch.float32, device=query.device)
    arguments = _mask_arguments(query, key, value, bias, plan, scale)
    constants = _constants("query_gradient", query, key, bias, plan)
    parts = plan.query_tiles.shape[0] * (plan.query_tile // constants["OUTER_TILE"])
    launcher(query_gradient_kernel, (parts, heads, splits))(
        query,
        key,
        value,
        output_gradient,
        part,
        log_sum_exp,
        delta,
        plan.query_tiles,
        plan.key_tiles,
        plan.row_counts,
        plan.row_lists,
        **arguments,
        **constants,
    )
    if splits > 1:
        query_gradient = part.sum(0).to(query.dtype)
    key_gradient, value_gradient = key.new_empty(key.shape), value.new_empty(value.shape)
    bias_gradient = torch.empty(heads if bias is not None else 0, keys, dtype=torch.float32, device=query.device)
    constants = _constants("key_gradient", query, key, bias, plan)
    parts = plan.key_tiles.shape[0] * (plan.key_tile // constants["OUTER_TILE"])
    launcher(key_gradient_kernel, (parts, key_heads))(
        query,
        key,
        value,
        output_gradient,
        key_gradient,
        value_gradient,
        bias_gradient,
        log_sum_exp,
        delta,
        plan.query_tiles,
        plan.key_tiles,
        plan.column_counts,
        plan.column_lists,
        **arguments,
        **constants,
    )
    if bias is not None:
        bias_gradient = bias_gradient.view(bias.shape[0], -1, keys).sum(1)  # [HB, Tk]
    return query_gradient, key_gradient, value_gradient, bias_gradient


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with the heads of a token contiguous; a slice of a joint projection is not copied."""
    dense = tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2] and tensor.stride(0) < 2**31
    return tensor if dense else tensor.contiguous()


def _mask_arguments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    plan: AttentionPlan,
    scale: float,
) -> dict[str, Any]:
    # A kernel does not read an absent tensor, but it needs a pointer in its place.
    absent = plan.low
    return {
        "low": plan.low,
        "high": plan.high,
        "level": plan.level,
        "selection_bits": absent if plan.selection_bits is None else plan.selection_bits,
        "block": absent if plan.block is None else plan.block,
        "bias": absent if bias is None else bias,
        "scale": scale,
        "queries": query.shape[0],
        "keys": key.shape[0],
        "word_count": 0 if plan.selection_bits is None else plan.selection_bits.shape[2],
        "row_tiles": plan.query_tiles.shape[0],
        "column_tiles": plan.key_tiles.shape[0],
        "query_stride": query.stride(0),
        "key_stride": key.stride(0),
        "value_stride": value.stride(0),
    }


def _constants(
    kernel: str, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, plan: AttentionPlan
) -> dict[str, Any]:
    select = 0 if plan.selection_bits is None else 1 if plan.aligned else 2
    config = kernel_config(kernel, query.shape[2], query.element_size(), select, (plan.query_tile, plan.key_tile))
    return {
        "HEADS": query.shape[1],
        "KEY_HEADS": key.shape[1],
        "MASK_HEADS": plan.row_counts.shape[0],
        "BIAS_HEADS": 0 if bias is None else bias.shape[0],
        "HEAD_SIZE": query.shape[2],
        "PADDED_SIZE": padded_size(query.shape[2]),
        "CHANNELS": plan.low.shape[0],
        "SELECT": select,
        "QUERY_TILE": plan.query_tile,
        "KEY_TILE": plan.key_tile,
        "OUTER_TILE": config.outer_tile,
        "INNER_TILE": config.inner_tile,
        "STAGES": config.stages,
        # Tensor cores have no float32 product: three TF32 products come within its rounding error.
        "PRECISION": "tf32x3" if query.is_cuda and query.dtype == torch.float32 else "ieee",
        "UPCAST": is_interpreted(),
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
