"""Partitions of a grid of tokens (time, rows, columns) into boxes, and the order that lays each box end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.checks import expect
from .blocks import Blocks, uneven_blocks


class Partition(NamedTuple):
    """`order` [T]: the token that stands at each place once boxes lie end to end; `inverse` [T]: the way back.

    `lengths`: tokens of each box, in order.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    lengths: torch.Tensor


def box_partition(grid: Sequence[int], box: Sequence[int], *, device: torch.device | str = "cpu") -> Partition:
    """Cut a grid of 1 to 3 axes, the last one running fastest, into boxes; those at the borders may be smaller.

    Raises ValueError for what does not fit.
    """
    expect(1 <= len(grid) <= 3 and all(size >= 1 for size in grid), "grid", tuple(grid), "1 to 3 sizes of 1 or more")
    expect(
        len(box) == len(grid) and all(size >= 1 for size in box), "box", tuple(box), f"{len(grid)} sizes of 1 or more"
    )
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    number = torch.zeros(tuple(grid), dtype=torch.int64)
    for axis, size, edge in zip(axes, grid, box, strict=True):
        number = number * -(-size // edge) + axis // edge
    number = number.flatten()
    order = number.argsort(stable=True)
    lengths = torch.bincount(number)
    return Partition(order.to(device), order.argsort().to(device), lengths.to(device))


def recurrent_partition(
    grid: Sequence[int],
    sizes: tuple[int, Sequence[int], Sequence[int]],
    layer: int,
    *,
    device: torch.device | str = "cpu",
) -> Partition:
    """Return a layer's partition of a grid (time, rows, columns): slabs of time, columns through time, boxes, in turn.

    `sizes`: time steps of a slab, (rows, columns) of a column, (time, rows, columns) of a box. This is VMoBA's 1D-2D-3D
    recurrence (arXiv 2506.23858). Raises ValueError for what does not fit.
    """
    expect(len(grid) == 3, "grid", tuple(grid), "(time, rows, columns)")
    slab, column, box = sizes
    boxes = ((slab, grid[1], grid[2]), (grid[0], *column), tuple(box))
    return box_partition(grid, boxes[layer % 3], device=device)


def partition_blocks(partition: Partition, copies: int = 1) -> Blocks:
    """Return the boxes as blocks, for tokens in the partition's order, `copies` times over: a segment each."""
    lengths = partition.lengths.repeat(copies)
    counts = [len(partition.lengths)] * copies
    sizes = set(partition.lengths.tolist())
    return uneven_blocks(lengths, counts, math.gcd(*sizes) if len(sizes) == 1 else 1)
