"""Kernels that take the mean of each block of tokens, and hand its gradient back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 32


@triton.jit
def mean_kernel(
    tokens, tiles, means, stride, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    """Write one block's mean for one head, summed in float32 in the order of its tokens. Grid: blocks, heads."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(tiles + block * 3).to(tl.int64)
    length = tl.load(tiles + block * 3 + 1)
    column = tl.arange(0, PADDED)
    total = tl.zeros([PADDED], tl.float32)
    for first in range(0, length, ROWS):
        row = first + tl.arange(0, ROWS)
        place = tokens + (start + row)[:, None] * stride + head * WIDTH + column[None, :]
        inside = (row < length)[:, None] & (column < WIDTH)[None, :]
        total += tl.sum(tl.load(place, mask=inside, other=0.0).to(tl.float32), 0)
    mean = total / tl.maximum(length, 1).to(tl.float32)
    written = means + (block.to(tl.int64) * HEADS + head) * WIDTH + column
    tl.store(written, mean.to(means.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def spread_kernel(
    gradient, tiles, spread, HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr
):
    """Write the gradient of a block's tokens from that of its mean. Grid: blocks, heads."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(tiles + block * 3).to(tl.int64)
    length = tl.load(tiles + block * 3 + 1)
    column = tl.arange(0, PADDED)
    place = gradient + (block.to(tl.int64) * HEADS + head) * WIDTH + column
    each = tl.load(place, mask=column < WIDTH, other=0.0).to(tl.float32) / tl.maximum(length, 1).to(tl.float32)
    for first in range(0, length, ROWS):
        row = first + tl.arange(0, ROWS)
        written = spread + ((start + row)[:, None] * HEADS + head) * WIDTH + column[None, :]
        inside = (row < length)[:, None] & (column < WIDTH)[None, :]
        shown = tl.broadcast_to(each[None, :], (ROWS, PADDED))
        tl.store(written, shown.to(spread.dtype.element_ty), mask=inside)


def launch_means(tokens: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
    """Return [n, H, D] of tokens [T, H, D]."""
    heads, width = tokens.shape[1:]
    tokens = tokens.contiguous()
    means = tokens.new_empty(tiles.shape[0], heads, width)
    mean_kernel[(tiles.shape[0], heads)](
        tokens, tiles, means, heads * width, HEADS=heads, WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=ROWS
    )
    return means


def launch_spread(gradient: torch.Tensor, tiles: torch.Tensor, count: int) -> torch.Tensor:
    """Return [T, H, D] of the means' gradient [n, H, D]."""
    heads, width = gradient.shape[1:]
    spread = gradient.new_empty(count, heads, width)
    spread_kernel[(tiles.shape[0], heads)](
        gradient.contiguous(),
        tiles,
        spread,
        HEADS=heads,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=ROWS,
    )
    return spread
