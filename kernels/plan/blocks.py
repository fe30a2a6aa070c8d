"""Blocks of consecutive tokens, which are pooled, scored and selected as a unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.checks import expect
from ..common.segments import Lengths, segment_offsets
from .index import cut_tiles


class Blocks(NamedTuple):
    """Segments cut into blocks.

    Attributes:
        tiles: int32 [n, 3], start, length and segment of each block, in order; unused blocks are at the end.
        block_in_segment: int64 [T], each token's block within its segment.
        segment: int64 [T], each token's segment, -1 behind the last segment.
        first: int64 [N], the first block of each segment.
        count: int64 [N], the number of blocks of each segment.
        size: each run of `size` tokens, counted from the segment's start, lies in one block.
        max_per_segment: an upper bound on the blocks of a segment.
    """

    tiles: torch.Tensor
    block_in_segment: torch.Tensor
    segment: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    size: int
    max_per_segment: int


def cut_blocks(
    tokens: int, size: int, *, lengths: Lengths = None, longest: int | None = None, device: torch.device | str = "cpu"
) -> Blocks:
    """Cut packed tokens into blocks of `size`; the last block of a segment may be shorter.

    Args:
        tokens: the number of packed tokens T.
        size: tokens of a block.
        lengths: the segments (see `Lengths`).
        longest: tokens of the longest segment, where the host knows it, to save memory.
        device: device of the blocks.

    Raises:
        ValueError: the size is below 1, or the lengths do not fit into `tokens`.
    """
    expect(size >= 1, "size", size, "1 or more")
    offsets, segments = segment_offsets(lengths, tokens, torch.device(device), "lengths")
    tiles = cut_tiles(offsets, tokens, size, tokens // size + segments + 1)
    position = torch.arange(tokens, device=offsets.device)
    ends = offsets[1:].contiguous()
    segment = torch.searchsorted(ends, position.int(), right=True)
    block_in_segment = (position - offsets[segment]) // size
    count = (offsets.diff() + size - 1) // size
    first = count.cumsum(0) - count
    max_per_segment = -(-(tokens if longest is None else min(longest, tokens)) // size)
    segment = torch.where(segment < segments, segment, -1)
    return Blocks(tiles, block_in_segment, segment, first.long(), count.long(), size, max_per_segment)


def uneven_blocks(lengths: torch.Tensor, counts: Sequence[int], size: int = 1) -> Blocks:
    """Return blocks of different lengths.

    The host reads the lengths: call this outside of the training or control loop.

    Args:
        lengths: tokens of each block [n].
        counts: the number of blocks of each segment, in order.
        size: as in `Blocks`.

    Raises:
        ValueError: the counts do not sum to n.
    """
    expect(sum(counts) == len(lengths), "counts", f"{sum(counts)} blocks together", len(lengths))
    count = torch.tensor(list(counts), device=lengths.device)
    first = count.cumsum(0) - count
    block_of_token = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)  # [T]
    segment = torch.repeat_interleave(torch.arange(len(count), device=lengths.device), count)
    tiles = torch.stack([lengths.cumsum(0) - lengths, lengths, segment], -1).int()
    block_in_segment = block_of_token - first[segment[block_of_token]]
    return Blocks(tiles, block_in_segment, segment[block_of_token], first, count, size, max(counts))
