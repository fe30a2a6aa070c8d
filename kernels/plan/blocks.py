"""Blocks of consecutive tokens: what is pooled, scored and chosen as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.checks import expect
from ..common.segments import Lengths, segment_offsets
from .index import cut_tiles


class Blocks(NamedTuple):
    """Segments cut into blocks.

    `tiles`: int32 [n, 3], start, length and segment of every block, in order, those that are not needed at the end;
    `block_in_segment`: int64 [T], each token's block within its segment; `segment`: int64 [T], each token's segment, -1 behind
    the last; `first` and `count`: int64 [N], the first block of each segment and how many it has; `max_per_segment`: a bound on
    the blocks of a segment; `size`: so many consecutive tokens, counted from their segment's start, surely belong to
    one block.
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
    """Cut `tokens` packed tokens of segments `lengths` [N] into blocks of `size`; None is one segment.

    The last block of a segment may be shorter.
    `longest`: tokens of the longest segment where it is known on the host, to save memory. Raises ValueError for what
    does not fit.
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
    """Return blocks of `lengths` [n] each, `counts` of which make up the segments, in order.

    `size`: as in `Blocks`. This reads the lengths, so it belongs outside of what a GPU runs again and again. Raises
    ValueError for what does not fit.
    """
    expect(sum(counts) == len(lengths), "counts", f"{sum(counts)} blocks together", len(lengths))
    count = torch.tensor(list(counts), device=lengths.device)
    first = count.cumsum(0) - count
    number = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    segment = torch.repeat_interleave(torch.arange(len(count), device=lengths.device), count)
    tiles = torch.stack([lengths.cumsum(0) - lengths, lengths, segment], -1).int()
    block_in_segment = number - first[segment[number]]
    return Blocks(tiles, block_in_segment, segment[number], first, count, size, max(counts))
