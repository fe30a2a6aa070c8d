"""Means of blocks of tokens, as a differentiable operator of torch."""

from __future__ import annotations

import torch

from ..common.checks import expect_tensor
from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator
from .blocks import Blocks

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def pool(tokens: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Return the mean [n, H, D] of each block of `tokens` [T, H, D]; 0 for a block that is not needed.

    Sums are taken in float32, in a fixed order both ways. Raises ValueError for what does not fit.
    """
    expect_tensor(
        tokens,
        "tokens",
        shape=(blocks.block_in_segment.shape[0], None, None),
        dtypes=FLOATS,
        device=blocks.tiles.device,
    )
    return block_means(tokens, blocks.tiles)


def _fake_means(tokens, tiles):
    return tokens.new_empty(tiles.shape[0], *tokens.shape[1:])


def _fake_means_backward(gradient, tiles, count):
    return gradient.new_empty(count, *gradient.shape[1:])


@operator("block_means_backward", fake=_fake_means_backward)
def block_means_backward(gradient: torch.Tensor, tiles: torch.Tensor, count: int) -> torch.Tensor:
    """Return the gradient [T, H, D] of `count` tokens from that of the means [n, H, D]."""
    if runs_in_triton(gradient):
        from .pooling_kernel import launch_means_backward

        with device_of(gradient):
            return launch_means_backward(gradient, tiles, count)
    token_share = gradient / tiles[:, 1].clamp(min=1)[:, None, None]
    return token_share[_block_of_token(tiles)].to(gradient.dtype)


def _setup_context(ctx, inputs, output) -> None:
    tokens, tiles = inputs
    ctx.save_for_backward(tiles)
    ctx.count = tokens.shape[0]


def _backward(ctx, gradient) -> tuple:
    return block_means_backward(gradient, ctx.saved_tensors[0], ctx.count), None


@operator("block_means", fake=_fake_means, gradients=_backward, setup_context=_setup_context)
def block_means(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Return [n, H, D] of tokens [T, H, D]; `tiles` int32 [n, 3], which together cover all tokens in order."""
    if runs_in_triton(tokens):
        from .pooling_kernel import launch_means

        with device_of(tokens):
            return launch_means(tokens, tiles)
    return means_in_torch(tokens, tiles)


def means_in_torch(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Return what `block_means` does."""
    exact = tokens if tokens.dtype == torch.float64 else tokens.float()
    sums = exact.new_zeros(tiles.shape[0], *tokens.shape[1:]).index_add_(0, _block_of_token(tiles), exact)
    return (sums / tiles[:, 1].clamp(min=1)[:, None, None]).to(tokens.dtype)


def _block_of_token(tiles: torch.Tensor) -> torch.Tensor:
    """Return each token's block."""
    return torch.repeat_interleave(torch.arange(len(tiles)), tiles[:, 1].long())
