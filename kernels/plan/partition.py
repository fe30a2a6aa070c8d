"""Partitions of a grid of tokens (time, rows, columns) into boxes, and the order that makes each box contiguous."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.checks import expect
from .blocks import Blocks, uneven_blocks


class Partition(NamedTuple):
    """A partition of T tokens into boxes.

    Attributes:
        order: [T], the token at each position of the reordered sequence, where each box is contiguous.
        inverse: [T], the permutation that restores the original order.
        lengths: tokens of each box, in the new order.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    lengths: torch.Tensor


def box_partition(grid: Sequence[int], box: Sequence[int], *, device: torch.device | str = "cpu") -> Partition:
    """Partition a grid into boxes; those at the borders may be smaller.

    Args:
        grid: sizes of 1 to 3 axes; the last axis varies fastest.
        box: the box's size along each axis.
        device: device of the partition.

    Raises:
        ValueError: the sizes are no 1 to 3 positive numbers, or `box` has another number of axes.
    """
    expect(1 <= len(grid) <= 3 and all(size >= 1 for size in grid), "grid", tuple(grid), "1 to 3 sizes of 1 or more")
    expect(
        len(box) == len(grid) and all(size >= 1 for size in box), "box", tuple(box), f"{len(grid)} sizes of 1 or more"
    )
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    box_of_token = torch.zeros(tuple(grid), dtype=torch.int64)
    for axis, size, edge in zip(axes, grid, box, strict=True):
        box_of_token = box_of_token * -(-size // edge) + axis // edge
    box_of_token = box_of_token.flatten()  # [T]
    order = box_of_token.argsort(stable=True)
    lengths = torch.bincount(box_of_token)
    return Partition(order.to(device), order.argsort().to(device), lengths.to(device))


def recurrent_partition(
    grid: Sequence[int],
    sizes: tuple[int, Sequence[int], Sequence[int]],
    layer: int,
    *,
    device: torch.device | str = "cpu",
) -> Partition:
    """Return a layer's partition of a grid (time, rows, columns): slabs of time, columns through time, boxes, in turn.

    This is VMoBA's 1D-2D-3D recurrence (arXiv 2506.23858).

    Args:
        grid: sizes (time, rows, columns).
        sizes: time steps of a slab, (rows, columns) of a column, (time, rows, columns) of a box.
        layer: the layer's number; it selects the kind of partition modulo 3.
        device: device of the partition.

    Raises:
        ValueError: the grid has no 3 axes, or a size is below 1.
    """
    expect(len(grid) == 3, "grid", tuple(grid), "(time, rows, columns)")
    slab, column, box = sizes
    boxes = ((slab, grid[1], grid[2]), (grid[0], *column), tuple(box))
    return box_partition(grid, boxes[layer % 3], device=device)


def partition_blocks(partition: Partition, copies: int = 1) -> Blocks:
    """Return the boxes as blocks of `copies` segments, for tokens in the partition's order."""
    lengths = partition.lengths.repeat(copies)
    counts = [len(partition.lengths)] * copies
    sizes = set(partition.lengths.tolist())
    return uneven_blocks(lengths, counts, math.gcd(*sizes) if len(sizes) == 1 else 1)
