"""Means of blocks of tokens, as a differentiable torch operator."""

from __future__ import annotations

import torch

from ..common.checks import FLOATS, expect_tensor
from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator
from .blocks import Blocks


def pool(tokens: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Return the mean of each block of tokens.

    Sums are formed in float32, in a fixed order in both passes.

    Args:
        tokens: [T, H, D].
        blocks: the n blocks of these tokens.

    Returns:
        The means [n, H, D]; 0 for an unused block.

    Raises:
        ValueError: the tokens' shape, dtype or device differs.
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
    """Return the gradient [T, H, D] of T = `count` tokens from the gradient of the means [n, H, D]."""
    if runs_in_triton(gradient):
        from .pooling_kernel import launch_means_backward

        with device_of(gradient):
            return launch_means_backward(gradient, tiles, count)
    token_share = gradient / tiles[:, 1].clamp(min=1)[:, None, None]  # [n, H, D]
    return token_share[_block_of_token(tiles)].to(gradient.dtype)


def _setup_context(ctx, inputs, output) -> None:
    tokens, tiles = inputs
    ctx.save_for_backward(tiles)
    ctx.count = tokens.shape[0]


def _backward(ctx, gradient) -> tuple:
    return block_means_backward(gradient, ctx.saved_tensors[0], ctx.count), None


@operator("block_means", fake=_fake_means, gradients=_backward, setup_context=_setup_context)
def block_means(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Return means [n, H, D] of tokens [T, H, D]; `tiles` int32 [n, 3] cover all tokens in order."""
    if runs_in_triton(tokens):
        from .pooling_kernel import launch_means

        with device_of(tokens):
            return launch_means(tokens, tiles)
    return means_in_torch(tokens, tiles)


def means_in_torch(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Compute `block_means` in plain torch."""
    exact = tokens if tokens.dtype == torch.float64 else tokens.float()
    zeros = exact.new_zeros(tiles.shape[0], *tokens.shape[1:])
    sums = zeros.index_add_(0, _block_of_token(tiles), exact)  # [n, H, D]
    return (sums / tiles[:, 1].clamp(min=1)[:, None, None]).to(tokens.dtype)


def _block_of_token(tiles: torch.Tensor) -> torch.Tensor:
    """Return each token's block, [T]."""
    return torch.repeat_interleave(torch.arange(len(tiles)), tiles[:, 1].long())
