"""gather_norm_film as an operator of torch: checks, dispatch, gradients, and shapes for compilers."""

from __future__ import annotations

import os
from types import ModuleType

import torch

MAX_WIDTH = 8192
"""The widest token: one program holds a whole one."""


def gather_norm_film(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the tokens that stay and, in the same pass, norm and modulate them.

    `tokens`: [B, S, D], float32, bfloat16, float16 or float64. `indices`: int32 or int64 [B, n], which tokens stay,
    each at most once in a sample; -1 stands for none and gives zeros, so that samples of different counts share a
    shape. None keeps all. `weight`: [D] of the RMS norm (Zhang and Sennrich, 2019). `modulation`: scale and shift of
    FiLM (Perez et al., 2018), each [B, D]; None leaves it out. These are float32 or of the tokens' dtype.

    Returns the kept tokens [B, n, D] as they are, which a residual connection needs, and
    `rms_norm(kept) * weight * (1 + scale) + shift`, computed in float32 at least; both of the tokens' dtype. Without
    `indices` the former is `tokens` itself. Two runs agree bit by bit. Raises ValueError for what does not fit; the
    numbers in `indices` are checked on the CPU only, and a GPU takes one that is out of range for -1.
    """
    _check(tokens, indices, weight, modulation)
    scale, shift = (None, None) if modulation is None else modulation
    kept, result, _ = _forward(tokens, indices, weight, scale, shift, epsilon)
    return (tokens if indices is None else kept), result


def _check(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    if tokens.ndim != 3:
        raise ValueError(f"tokens: got {tokens.ndim} dimensions, expected 3")
    if tokens.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"tokens: got {tokens.dtype}, expected float32, bfloat16, float16 or float64")
    batch, width = tokens.shape[0], tokens.shape[2]
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"tokens: got width {width}, expected 1 to {MAX_WIDTH}")
    parts = [("weight", weight, (width,))]
    if modulation is not None:
        if len(modulation) != 2:
            raise ValueError(f"modulation: got {len(modulation)} tensors, expected scale and shift")
        parts += [("scale", modulation[0], (batch, width)), ("shift", modulation[1], (batch, width))]
    for name, part, shape in parts:
        if part.device != tokens.device:
            raise ValueError(f"{name}: got it on {part.device}, expected {tokens.device} as tokens")
        if part.shape != shape:
            raise ValueError(f"{name}: got shape {tuple(part.shape)}, expected {tuple(shape)}")
        if part.dtype not in (torch.float32, tokens.dtype):
            raise ValueError(f"{name}: got {part.dtype}, expected float32 or {tokens.dtype} as tokens")
    if indices is not None:
        if indices.device != tokens.device:
            raise ValueError(f"places: got it on {indices.device}, expected {tokens.device} as tokens")
        if indices.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"places: got {indices.dtype}, expected int32 or int64")
        if indices.ndim != 2 or indices.shape[0] != batch:
            raise ValueError(f"places: got shape {tuple(indices.shape)}, expected ({batch}, n)")


def _implementation(tokens: torch.Tensor) -> ModuleType:
    """Return the module that computes: the kernels on a GPU and, for tests, in Triton's interpreter; torch elsewhere.

    Triton is imported no earlier than it is used: it is not installed everywhere.
    """
    interpreted = tokens.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if tokens.dtype != torch.float64 and (tokens.device.type == "cuda" or interpreted):
        from . import kernel

        return kernel
    from . import torch_path

    return torch_path


@torch.library.custom_op("saccade::gather_norm_film", mutates_args=())
def _forward(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Triton launches where torch stands, which need not be where the tensors are.
    with torch.cuda.device_of(tokens):
        return _implementation(tokens).forward(tokens, indices, weight, scale, shift, epsilon)


@_forward.register_fake
def _(tokens, indices, weight, scale, shift, epsilon):
    batch, sources, width = tokens.shape
    rows = sources if indices is None else indices.shape[1]
    inverse_rms = tokens.new_empty(batch, rows, dtype=torch.promote_types(tokens.dtype, torch.float32))
    kept = tokens.new_empty(0) if indices is None else tokens.new_empty(batch, rows, width)
    return kept, tokens.new_empty(batch, rows, width), inverse_rms


@torch.library.custom_op("saccade::gather_norm_film_backward", mutates_args=())
def _backward(
    source: torch.Tensor,
    inverse_rms: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept_gradient: torch.Tensor | None,
    gradient: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.cuda.device_of(source):
        return _implementation(source).backward(
            source, inverse_rms, indices, weight, scale, kept_gradient, gradient, sources
        )


@_backward.register_fake
def _(source, inverse_rms, indices, weight, scale, kept_gradient, gradient, sources):
    batch, _, width = source.shape
    return source.new_empty(batch, sources, width), inverse_rms.new_empty(batch, 2, width)


def _setup_context(ctx, inputs, output):
    tokens, indices, weight, scale, shift, _ = inputs
    kept, _, inverse_rms = output
    # The kept tokens are fewer than all, and the next operation holds them anyway.
    ctx.save_for_backward(tokens if indices is None else kept, inverse_rms, indices, weight, scale)
    ctx.sources, ctx.shift_dtype = tokens.shape[1], None if shift is None else shift.dtype
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx, kept_gradient, gradient, _):
    source, inverse_rms, indices, weight, scale = ctx.saved_tensors
    if indices is None:
        kept_gradient = None
    if gradient is None:
        gradient = torch.zeros_like(source)
    tokens_gradient, sums = _backward(source, inverse_rms, indices, weight, scale, kept_gradient, gradient, ctx.sources)
    normed_sum, plain_sum = sums.unbind(1)
    if scale is None:
        return tokens_gradient, None, normed_sum.sum(0).to(weight.dtype), None, None, None
    weight_gradient = (normed_sum * (1 + scale)).sum(0).to(weight.dtype)
    scale_gradient = (normed_sum * weight).to(scale.dtype)
    return tokens_gradient, None, weight_gradient, scale_gradient, plain_sum.to(ctx.shift_dtype), None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)
