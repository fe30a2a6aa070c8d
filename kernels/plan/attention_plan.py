"""The plan of block-sparse attention: which query sees which key, and which tiles have to be visited."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.checks import INTEGERS, expect, expect_tensor
from ..common.segments import Lengths, segment_offsets
from .index import tile_lists
from .selection import Selection

TILE_SIZES = (16, 32, 64, 128)

HIDDEN = 2**31 - 1
"""The level of a key that no query sees: bounds are clamped below it."""


class AttentionPlan(NamedTuple):
    """The mask of block-sparse attention in compact form; one plan serves all layers with the same mask.

    Attributes:
        low: int32 [P, Tq], each query's lower bounds in P channels.
        high: int32 [P, Tq], each query's upper bounds.
        level: int32 [P, Tk], each key's levels: it is seen where low <= level <= high in every channel.
        selection_bits: int32 [H, Tq, W] or None: bit n is set where the query selected block n of its segment.
        block: int32 [Tk] or None: each key's block, -1 for a key that is always visible.
        query_tiles: int32 [NQ, 3]: start, length and segment.
        key_tiles: int32 [NK, 3]: start, length and segment.
        row_counts: int32 [H, NQ, 2]: the number of key tiles that a query tile sees partially, and fully.
        row_lists: int32 [H, NQ, NK]: those key tiles, partial ones from the left, full ones from the right.
        column_counts: int32 [H, NK, 2]: the number of query tiles that see a key tile partially, and fully.
        column_lists: int32 [H, NK, NQ]: those query tiles, partial ones from the left, full ones from the right.
        query_tile: tokens of a query tile.
        key_tile: tokens of a key tile.
        aligned: whether all keys of a tile belong to one block.
    """

    low: torch.Tensor
    high: torch.Tensor
    level: torch.Tensor
    selection_bits: torch.Tensor | None
    block: torch.Tensor | None
    query_tiles: torch.Tensor
    key_tiles: torch.Tensor
    row_counts: torch.Tensor
    row_lists: torch.Tensor
    column_counts: torch.Tensor
    column_lists: torch.Tensor
    query_tile: int
    key_tile: int
    aligned: bool


def build_plan(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    *,
    query_lengths: Lengths = None,
    key_lengths: Lengths = None,
    selection: Selection | None = None,
    query_tile: int = 64,
    key_tile: int = 64,
) -> AttentionPlan:
    """Plan attention over packed tokens, on their device and without a host synchronization.

    A query sees a key of its own segment if the key's level lies within the query's bounds in all channels, and if the
    query selected the key's block. Tokens behind the last segment see nothing and are not seen.

    Args:
        low: integers [P, Tq] or [Tq], lower bounds in 1 to 3 channels P.
        high: integers [P, Tq] or [Tq], upper bounds.
        level: integers [P, Tk] or [Tk], the keys' levels; `HIDDEN` for a key that no query sees.
        query_lengths: the queries' segments (see `Lengths`).
        key_lengths: the keys' segments, as many.
        selection: the blocks that each query selected; None for no selection.
        query_tile: tokens of a query tile: 16, 32, 64 or 128.
        key_tile: tokens of a key tile: 16, 32, 64 or 128.

    Raises:
        ValueError: a shape, dtype, device, length or tile size does not fit.
    """
    low, high, level = (part[None] if part.dim() == 1 else part for part in (low, high, level))
    expect_tensor(low, "low", shape=(None, None), dtypes=INTEGERS)
    channels, queries = low.shape
    expect(1 <= channels <= 3, "low", channels, "1 to 3", unit="channels")
    expect_tensor(high, "high", shape=(channels, queries), dtypes=INTEGERS, device=low.device)
    expect_tensor(level, "level", shape=(channels, None), dtypes=INTEGERS, device=low.device)
    keys = level.shape[1]
    for size, argument in ((query_tile, "query_tile"), (key_tile, "key_tile")):
        expect(size in TILE_SIZES, argument, size, f"one of {TILE_SIZES}")
    expect(
        (query_lengths is None) == (key_lengths is None), "query_lengths, key_lengths", "one of them", "both or none"
    )
    query_offsets, segments = segment_offsets(query_lengths, queries, low.device, "query_lengths")
    key_offsets, key_segments = segment_offsets(key_lengths, keys, low.device, "key_lengths")
    expect(segments == key_segments, "key_lengths", key_segments, segments, unit="segments")
    selection_bits = block = None
    aligned = True
    if selection is not None:
        selection_bits, block, aligned = selection.selection_bits, selection.block, selection.block_size % key_tile == 0
        expect_tensor(
            selection_bits,
            "selection.selection_bits",
            shape=(None, queries, None),
            dtypes=INTEGERS[:1],
            device=low.device,
        )
        expect_tensor(block, "selection.block", shape=(keys,), dtypes=INTEGERS[:1], device=low.device)
    low = low.clamp(-HIDDEN, HIDDEN).int().contiguous()
    high = high.clamp(-HIDDEN, HIDDEN - 1).int().contiguous()
    level = level.clamp(-HIDDEN, HIDDEN).int().contiguous()
    query_tiles, key_tiles, row_counts, row_lists, column_counts, column_lists = tile_lists(
        low,
        high,
        level,
        query_offsets,
        key_offsets,
        selection_bits,
        block,
        query_tile,
        key_tile,
        queries // query_tile + segments + 1,
        keys // key_tile + segments + 1,
    )
    return AttentionPlan(
        low=low,
        high=high,
        level=level,
        selection_bits=selection_bits,
        block=block,
        query_tiles=query_tiles,
        key_tiles=key_tiles,
        row_counts=row_counts,
        row_lists=row_lists,
        column_counts=column_counts,
        column_lists=column_lists,
        query_tile=query_tile,
        key_tile=key_tile,
        aligned=aligned,
    )


def batch_plan(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    *,
    selection: Selection | None = None,
    query_tile: int = 64,
    key_tile: int = 64,
) -> AttentionPlan:
    """Plan attention over a batch of equally long samples.

    Args:
        low: integers [B, Sq] or [P, B, Sq], lower bounds.
        high: integers [B, Sq] or [P, B, Sq], upper bounds.
        level: integers [B, Sk] or [P, B, Sk], the keys' levels.
        selection: as in `build_plan`.
        query_tile: as in `build_plan`.
        key_tile: as in `build_plan`.

    Raises:
        ValueError: a shape, dtype, device or tile size does not fit.
    """
    low, high, level = (part[None] if part.dim() == 2 else part for part in (low, high, level))
    expect(low.dim() == 3, "low", list(low.shape), "the shape [B, S] or [P, B, S]")
    expect(high.dim() == 3, "high", list(high.shape), "the shape [B, S] or [P, B, S]")
    expect(level.dim() == 3, "level", list(level.shape), "the shape [B, S] or [P, B, S]")
    batch = low.shape[1]
    expect(level.shape[1] == batch, "level", level.shape[1], batch, unit="members of a batch")
    return build_plan(
        low.flatten(1),
        high.flatten(1),
        level.flatten(1),
        query_lengths=batch,
        key_lengths=batch,
        selection=selection,
        query_tile=query_tile,
        key_tile=key_tile,
    )
