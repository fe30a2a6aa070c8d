"""Triton kernels of the block means and of their gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..common.launch import launcher, next_power_of_2

ROWS = 32
"""Tokens that a program handles at once."""


@triton.jit
def mean_kernel(
    tokens,
    tiles,
    means,
    stride,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write one block's mean for one head, summed in float32 in the order of its tokens. Grid: blocks, heads."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(tiles + block * 3).to(tl.int64)
    length = tl.load(tiles + block * 3 + 1)
    column = tl.arange(0, PADDED_SIZE)
    total = tl.zeros([PADDED_SIZE], tl.float32)
    for first in range(0, length, ROWS):
        row = first + tl.arange(0, ROWS)
        address = tokens + (start + row)[:, None] * stride + head * HEAD_SIZE + column[None, :]
        inside = (row < length)[:, None] & (column < HEAD_SIZE)[None, :]
        total += tl.sum(tl.load(address, mask=inside, other=0.0).to(tl.float32), 0)
    mean = total / tl.maximum(length, 1).to(tl.float32)
    written = means + (block.to(tl.int64) * HEADS + head) * HEAD_SIZE + column
    tl.store(written, mean.to(means.dtype.element_ty), mask=column < HEAD_SIZE)


@triton.jit
def mean_backward_kernel(
    gradient,
    tiles,
    tokens_gradient,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the gradient of a block's tokens from the gradient of its mean. Grid: blocks, heads."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(tiles + block * 3).to(tl.int64)
    length = tl.load(tiles + block * 3 + 1)
    column = tl.arange(0, PADDED_SIZE)
    address = gradient + (block.to(tl.int64) * HEADS + head) * HEAD_SIZE + column
    block_gradient = tl.load(address, mask=column < HEAD_SIZE, other=0.0).to(tl.float32)  # [PADDED_SIZE]
    token_share = block_gradient / tl.maximum(length, 1).to(tl.float32)
    for first in range(0, length, ROWS):
        row = first + tl.arange(0, ROWS)
        written = tokens_gradient + ((start + row)[:, None] * HEADS + head) * HEAD_SIZE + column[None, :]
        inside = (row < length)[:, None] & (column < HEAD_SIZE)[None, :]
        expanded = tl.broadcast_to(token_share[None, :], (ROWS, PADDED_SIZE))
        tl.store(written, expanded.to(tokens_gradient.dtype.element_ty), mask=inside)


def launch_means(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Return the means [n, H, D] of tokens [T, H, D]."""
    heads, head_size = tokens.shape[1:]
    tokens = tokens.contiguous()
    means = tokens.new_empty(tiles.shape[0], heads, head_size)
    launcher(mean_kernel, (tiles.shape[0], heads))(
        tokens,
        tiles,
        means,
        heads * head_size,
        HEADS=heads,
        HEAD_SIZE=head_size,
        PADDED_SIZE=next_power_of_2(head_size),
        ROWS=ROWS,
    )
    return means


def launch_means_backward(gradient: torch.Tensor, tiles: torch.Tensor, count: int) -> torch.Tensor:
    """Return the gradient of T = `count` tokens, [T, H, D], from the gradient of the means [n, H, D]."""
    heads, head_size = gradient.shape[1:]
    tokens_gradient = gradient.new_empty(count, heads, head_size)
    launcher(mean_backward_kernel, (tiles.shape[0], heads))(
        gradient.contiguous(),
        tiles,
        tokens_gradient,
        HEADS=heads,
        HEAD_SIZE=head_size,
        PADDED_SIZE=next_power_of_2(head_size),
        ROWS=ROWS,
    )
    return tokens_gradient
