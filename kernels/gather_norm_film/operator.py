"""gather_norm_film as a torch operator: argument checks, dispatch, gradients, and shapes for compilers."""

from __future__ import annotations

import torch

from ..common.checks import FLOATS, INTEGERS, expect, expect_tensor
from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator
from . import torch_path

MAX_WIDTH = 8192
"""The widest token: one program holds a whole token."""


def gather_norm_film(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    epsilon: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the tokens that are kept, and normalize and modulate them in the same pass.

    RMS norm: Zhang and Sennrich, 2019. FiLM: Perez et al., 2018. Results are computed in float32 at least, and two runs
    agree bit by bit.

    Args:
        tokens: [B, S, D], float32, bfloat16, float16 or float64.
        indices: int32 or int64 [B, n], which tokens are kept, each at most once in a sample; -1 gives a token of zeros,
            so that samples with different counts share a shape. None keeps all tokens.
        weight: [D] of the RMS norm, float32 or of the tokens' dtype.
        modulation: scale and shift of FiLM, each [B, D], float32 or of the tokens' dtype; None leaves FiLM out.
        epsilon: added to the mean square.

    Returns:
        The kept tokens [B, n, D] unchanged, for the residual connection (`tokens` itself without `indices`), and
        `rms_norm(kept) * weight * (1 + scale) + shift`, [B, n, D]; both of the tokens' dtype.

    Raises:
        ValueError: a shape, dtype or device differs, or, on the CPU, an index is out of range or repeated in a sample.
            A GPU treats an index out of range as -1.
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
    expect_tensor(tokens, "tokens", shape=(None, None, None), dtypes=FLOATS)
    batch, _, width = tokens.shape
    expect(1 <= width <= MAX_WIDTH, "tokens", width, f"1 to {MAX_WIDTH}", unit="numbers in a token")
    dtypes, device = (torch.float32, tokens.dtype), tokens.device
    expect_tensor(weight, "weight", shape=(width,), dtypes=dtypes, device=device)
    if modulation is not None:
        expect(len(modulation) == 2, "modulation", len(modulation), "scale and shift", unit="tensors")
        for name, part in zip(("scale", "shift"), modulation, strict=True):
            expect_tensor(part, name, shape=(batch, width), dtypes=dtypes, device=device)
    if indices is not None:
        expect_tensor(indices, "indices", shape=(batch, None), dtypes=INTEGERS, device=device)


def _runs_kernels(tokens: torch.Tensor) -> bool:
    """Tell whether the kernels compute; they have no float64."""
    return tokens.dtype != torch.float64 and runs_in_triton(tokens)


def _fake_backward(source, inverse_rms, indices, weight, scale, kept_gradient, gradient, sources):
    batch, _, width = source.shape
    return source.new_empty(batch, sources, width), inverse_rms.new_empty(batch, 2, width)


@operator("gather_norm_film_backward", fake=_fake_backward)
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
    arguments = (source, inverse_rms, indices, weight, scale, kept_gradient, gradient, sources)
    if _runs_kernels(source):
        from . import kernel

        with device_of(source):
            return kernel.backward(*arguments)
    return torch_path.backward(*arguments)


def _fake_forward(tokens, indices, weight, scale, shift, epsilon):
    batch, sources, width = tokens.shape
    rows = sources if indices is None else indices.shape[1]
    inverse_rms = tokens.new_empty(batch, rows, dtype=torch.promote_types(tokens.dtype, torch.float32))
    kept = tokens.new_empty(0) if indices is None else tokens.new_empty(batch, rows, width)
    return kept, tokens.new_empty(batch, rows, width), inverse_rms


def _setup_context(ctx, inputs, output) -> None:
    tokens, indices, weight, scale, shift, _ = inputs
    kept, _, inverse_rms = output
    # Save the kept tokens: they are fewer than all, and the next operation holds them anyway.
    ctx.save_for_backward(tokens if indices is None else kept, inverse_rms, indices, weight, scale)
    ctx.sources, ctx.shift_dtype = tokens.shape[1], None if shift is None else shift.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx, kept_gradient, gradient, _) -> tuple:
    source, inverse_rms, indices, weight, scale = ctx.saved_tensors
    if indices is None:
        kept_gradient = None
    if gradient is None:
        gradient = torch.zeros_like(source)
    tokens_gradient, sums = _backward(source, inverse_rms, indices, weight, scale, kept_gradient, gradient, ctx.sources)
    normed_sum, plain_sum = sums.unbind(1)  # [B, D] each
    if scale is None:
        return tokens_gradient, None, normed_sum.sum(0).to(weight.dtype), None, None, None
    weight_gradient = (normed_sum * (1 + scale)).sum(0).to(weight.dtype)  # [D]
    scale_gradient = (normed_sum * weight).to(scale.dtype)  # [B, D]
    return tokens_gradient, None, weight_gradient, scale_gradient, plain_sum.to(ctx.shift_dtype), None


@operator("gather_norm_film", fake=_fake_forward, gradients=_gradients, setup_context=_setup_context)
def _forward(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arguments = (tokens, indices, weight, scale, shift, epsilon)
    if _runs_kernels(tokens):
        from . import kernel

        with device_of(tokens):
            return kernel.forward(*arguments)
    return torch_path.forward(*arguments)
