"""Linear attention as an operator of torch: checks, dispatch, gradients, and shapes for compilers."""

from __future__ import annotations

import os
from types import ModuleType

import torch


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
    """Attend linearly and causally, with decay, inside each of several segments laid one after another.

    Token t of a segment: `state = exp(log_decay) * state + key_t value_t^T`, `output_t = scale * query_t state`
    (Lightning Attention-2, Qin et al., 2024, sections 3 and 4). Time and memory grow with S alone.

    `query`, `key`: [S, heads, d]; `value`: [S, heads, e]; one of float32, bfloat16, float16, float64 for all three.
    `log_decay`: float32 [heads], finite and at most 0; it is not learned (see `alibi_log_decays`).
    `boundaries`: int32 or int64 [segments + 1] on the same device, ascending from 0 to at most S; a segment may be
    empty, and tokens behind the last boundary belong to none: their output is zero, and so is their gradient.
    `state`: what is carried in, [segments, heads, d, e], float32 (float64 with float64); None is zero.
    `scale`: d^-0.5 unless given.

    Returns the output [S, heads, e] and the state behind each segment. Both can be differentiated with respect to
    query, key, value and state. Two runs agree bit by bit. Raises ValueError for what does not fit; the numbers in
    `boundaries` are checked on the CPU only, for looking at them would make a GPU wait.
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
    ranks = [("query", query, 3), ("key", key, 3), ("value", value, 3), ("log_decay", log_decay, 1)]
    ranks += [("boundaries", boundaries, 1)] + ([] if state is None else [("state", state, 4)])
    for name, tensor, rank in ranks:
        if tensor.ndim != rank:
            raise ValueError(f"{name}: got {tensor.ndim} dimensions, expected {rank}")
        if tensor.device != query.device:
            raise ValueError(f"{name}: got it on {tensor.device}, expected {query.device} as query")
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"query: got {query.dtype}, expected float32, bfloat16, float16 or float64")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name}: got {tensor.dtype}, expected {query.dtype} as query")
    if key.shape != query.shape:
        raise ValueError(f"key: got shape {tuple(key.shape)}, expected {tuple(query.shape)} as query")
    if value.shape[:2] != query.shape[:2]:
        raise ValueError(f"value: got shape {tuple(value.shape)}, expected {tuple(query.shape[:2])} and a width")
    if query.shape[1] == 0 or query.shape[2] == 0 or value.shape[2] == 0:
        raise ValueError(
            f"query, value: got shapes {tuple(query.shape)}, {tuple(value.shape)}, expected a head and a width at least"
        )
    if log_decay.dtype != torch.float32 or log_decay.shape[0] != query.shape[1]:
        raise ValueError(
            f"log_decay: got {log_decay.dtype} {tuple(log_decay.shape)}, expected float32 for {query.shape[1]} heads"
        )
    if log_decay.requires_grad:
        raise ValueError("log_decay: got one that requires a gradient, expected one that is not learned")
    if boundaries.dtype not in (torch.int32, torch.int64) or boundaries.shape[0] == 0:
        raise ValueError(
            f"boundaries: got {boundaries.dtype} {tuple(boundaries.shape)}, expected int32 or int64, one at least"
        )
    if state is not None:
        expected = (boundaries.shape[0] - 1, query.shape[1], query.shape[2], value.shape[2])
        if state.shape != expected or state.dtype != _state_dtype(query):
            raise ValueError(
                f"state: got {state.dtype} {tuple(state.shape)}, expected {_state_dtype(query)} {tuple(expected)}"
            )


def _implementation(query: torch.Tensor) -> ModuleType:
    """Return the module that computes: the kernels on a GPU and, for tests, in Triton's interpreter; torch elsewhere.

    Triton is imported no earlier than it is used: it is not installed everywhere.
    """
    interpreted = query.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if query.dtype != torch.float64 and (query.device.type == "cuda" or interpreted):
        from . import kernel

        return kernel
    from . import torch_path

    return torch_path


@torch.library.custom_op("saccade::linear_attention", mutates_args=())
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    boundaries: torch.Tensor,
    state: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Triton launches where torch stands, which need not be where the tensors are.
    with torch.cuda.device_of(query):
        implementation = _implementation(query)
        chunk_plan = implementation.chunk_plan(boundaries, len(query))
        chunk_states = implementation.local_states(key, value, log_decay, chunk_plan, scale=1.0, reverse=False)
        entering_states, final_state = implementation.scan(
            chunk_states, state, log_decay, chunk_plan, dtype=implementation.operand_dtype(query), reverse=False
        )
        return implementation.outputs(
            query, key, value, entering_states, log_decay, chunk_plan, scale=scale, reverse=False
        ), final_state


@_forward.register_fake
def _(query, key, value, log_decay, boundaries, state, scale):
    return value.new_empty(value.shape), state.new_empty(state.shape)


@torch.library.custom_op("saccade::linear_attention_backward", mutates_args=())
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

    The states are computed once more instead of being kept: they are as large as all that goes in.
    """
    with torch.cuda.device_of(query):
        implementation = _implementation(query)
        chunk_plan = implementation.chunk_plan(boundaries, len(query))
        chunk_states = implementation.local_states(key, value, log_decay, chunk_plan, scale=1.0, reverse=False)
        entering_states, _ = implementation.scan(
            chunk_states, state, log_decay, chunk_plan, dtype=implementation.operand_dtype(query), reverse=False
        )
        chunk_states = implementation.local_states(
            query, output_gradient, log_decay, chunk_plan, scale=scale, reverse=True
        )
        entering_gradients, state_gradient = implementation.scan(
            chunk_states, final_gradient, log_decay, chunk_plan, dtype=implementation.operand_dtype(query), reverse=True
        )

        def outputs_of(*parts: torch.Tensor, reverse: bool) -> torch.Tensor:
            return implementation.outputs(*parts, log_decay, chunk_plan, scale=scale, reverse=reverse)

        return (
            outputs_of(output_gradient, value, key, entering_states.transpose(-1, -2), reverse=False),
            outputs_of(value, output_gradient, query, entering_gradients.transpose(-1, -2), reverse=True),
            outputs_of(key, query, output_gradient, entering_gradients, reverse=True),
            state_gradient,
        )


@_backward.register_fake
def _(query, key, value, log_decay, boundaries, state, output_gradient, final_gradient, scale):
    return tuple(part.new_empty(part.shape) for part in (query, key, value, state))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx, output_gradient, final_gradient):
    query, key, value, log_decay, boundaries, state = ctx.saved_tensors
    query_gradient, key_gradient, value_gradient, state_gradient = _backward(
        query, key, value, log_decay, boundaries, state, output_gradient, final_gradient, ctx.scale
    )
    return query_gradient, key_gradient, value_gradient, None, None, state_gradient, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)
