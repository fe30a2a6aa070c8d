"""Linear attention as a torch operator: argument checks, dispatch, gradients, and shapes for compilers."""

from __future__ import annotations

from types import ModuleType

import torch

from ..common.checks import FLOATS, INTEGERS, expect, expect_tensor
from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator
from . import torch_path


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute causal linear attention with decay inside each of several packed segments.

    For token t of a segment: `state = exp(log_decay) * state + key_t value_t^T`, `output_t = scale * query_t state`
    (Lightning Attention-2, Qin et al., 2024, sections 3 and 4). Time and memory grow with S only. Results are
    differentiable with respect to query, key, value and state, and two runs agree bit by bit.

    Args:
        query: [S, heads, d], float32, bfloat16, float16 or float64.
        key: [S, heads, d], of the query's dtype.
        value: [S, heads, e], of the query's dtype.
        log_decay: float32 [heads], finite and at most 0; not learned (see `alibi_log_decays`).
        boundaries: int32 or int64 [segments + 1], ascending from 0 to at most S. A segment may be empty. Tokens behind
            the last boundary belong to no segment: their output and gradient are zero.
        state: the state before each segment, [segments, heads, d, e], float32 (float64 with float64); None is zero.
        scale: factor of the output; d^-0.5 by default.

    Returns:
        The output [S, heads, e], and the state after each segment [segments, heads, d, e].

    Raises:
        ValueError: a shape, dtype or device differs, or, on the CPU, the boundaries do not ascend. A GPU's are not
            read, because the host would have to wait for them.
    """
    _check(query, key, value, log_decay, boundaries, state)
    if state is None:
        shape = (boundaries.shape[0] - 1, query.shape[1], query.shape[2], value.shape[2])
        state = query.new_zeros(shape, dtype=_state_dtype(query))
    return _forward(query, key, value, log_decay, boundaries, state, query.shape[2] ** -0.5 if scale is None else scale)


def _state_dtype(query: torch.Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor | None,
) -> None:
    expect_tensor(query, "query", shape=(None, None, None), dtypes=FLOATS)
    tokens, heads, width = query.shape
    same, device = (query.dtype,), query.device
    expect_tensor(key, "key", shape=query.shape, dtypes=same, device=device)
    expect_tensor(value, "value", shape=(tokens, heads, None), dtypes=same, device=device)
    expect(heads >= 1, "query", heads, "1 or more", unit="heads")
    for argument, size in (("query", width), ("value", value.shape[2])):
        expect(size >= 1, argument, size, "1 or more", unit="numbers in a head")
    expect_tensor(log_decay, "log_decay", shape=(heads,), dtypes=(torch.float32,), device=device)
    expect(not log_decay.requires_grad, "log_decay", "a tensor that requires a gradient", "one that is not learned")
    expect_tensor(boundaries, "boundaries", shape=(None,), dtypes=INTEGERS, device=device)
    expect(boundaries.shape[0] >= 1, "boundaries", boundaries.shape[0], "1 or more", unit="boundaries")
    if state is not None:
        shape = (boundaries.shape[0] - 1, heads, width, value.shape[2])
        expect_tensor(state, "state", shape=shape, dtypes=(_state_dtype(query),), device=device)


def _implementation(query: torch.Tensor) -> ModuleType:
    """Return the module that computes the three steps: the kernels, which have no float64, or torch.

    Import the kernels only when they are used: Triton is not installed on every machine.
    """
    if query.dtype != torch.float64 and runs_in_triton(query):
        from . import kernel

        return kernel
    return torch_path


def _fake_backward(query, key, value, log_decay, boundaries, state, output_gradient, final_gradient, scale):
    return tuple(part.new_empty(part.shape) for part in (query, key, value, state))


@operator("linear_attention_backward", fake=_fake_backward)
def _backward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor,
    output_gradient: torch.Tensor,
    final_gradient: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate with the same three steps: the gradient of the state runs from the end to the start.

    The states are computed again instead of saved: they are as large as all inputs together.
    """
    with device_of(query):
        steps = _implementation(query)
        plan, dtype = steps.chunk_plan(boundaries, len(query)), steps.operand_dtype(query)
        chunk_states = steps.local_states(
            key, value, log_decay, plan, scale=1.0, reverse=False
        )  # [chunks, heads, d, e]
        entering_states, _ = steps.scan(chunk_states, state, log_decay, plan, dtype=dtype, reverse=False)
        # Reuse the name: the first chunk states are freed before the second ones are scanned.
        chunk_states = steps.local_states(query, output_gradient, log_decay, plan, scale=scale, reverse=True)
        entering_gradients, state_gradient = steps.scan(
            chunk_states, final_gradient, log_decay, plan, dtype=dtype, reverse=True
        )  # [chunks, heads, d, e], [segments, heads, d, e]

        def outputs_of(*parts: torch.Tensor, reverse: bool) -> torch.Tensor:
            return steps.outputs(*parts, log_decay, plan, scale=scale, reverse=reverse)

        return (
            outputs_of(output_gradient, value, key, entering_states.transpose(-1, -2), reverse=False),  # [S, heads, d]
            outputs_of(value, output_gradient, query, entering_gradients.transpose(-1, -2), reverse=True),
            outputs_of(key, query, output_gradient, entering_gradients, reverse=True),  # [S, heads, e]
            state_gradient,
        )


def _fake_forward(query, key, value, log_decay, boundaries, state, scale):
    return value.new_empty(value.shape), state.new_empty(state.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, output_gradient, final_gradient) -> tuple:
    query, key, value, log_decay, boundaries, state = ctx.saved_tensors
    query_gradient, key_gradient, value_gradient, state_gradient = _backward(
        query, key, value, log_decay, boundaries, state, output_gradient, final_gradient, ctx.scale
    )
    return query_gradient, key_gradient, value_gradient, None, None, state_gradient, None


@operator("linear_attention", fake=_fake_forward, gradients=_gradients, setup_context=_setup_context)
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    with device_of(query):
        steps = _implementation(query)
        plan = steps.chunk_plan(boundaries, len(query))
        chunk_states = steps.local_states(
            key, value, log_decay, plan, scale=1.0, reverse=False
        )  # [chunks, heads, d, e]
        entering_states, final_state = steps.scan(
            chunk_states, state, log_decay, plan, dtype=steps.operand_dtype(query), reverse=False
        )  # [chunks, heads, d, e], [segments, heads, d, e]
        output = steps.outputs(query, key, value, entering_states, log_decay, plan, scale=scale, reverse=False)
        return output, final_state  # [S, heads, e], [segments, heads, d, e]
