"""The plan of block-sparse attention: who may see whom, and which tiles have to be visited for it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common.checks import expect, expect_tensor
from ..common.segments import INTEGERS, Lengths, segment_offsets
from .index import tile_lists
from .selection import Selection

TILE_SIZES = (16, 32, 64, 128)

HIDDEN = 2**31 - 1
"""The level of a key that no query sees: bounds are held below it."""


class AttentionPlan(NamedTuple):
    """What attention needs to know beside its tensors; one plan serves all layers with the same mask.

    low, high         int32 [P, Tq], bounds of each query in P channels
    level             int32 [P, Tk], levels of each key: seen where low <= level <= high in every channel
    words             int32 [H, Tq, W] or None: bit n says that the query chose block n of its segment
    block             int32 [Tk] or None: each key's block, -1 for a key that needs no choosing
    query_tiles       int32 [NQ, 3]: start, length and segment
    key_tiles         int32 [NK, 3]
    row_counts        int32 [H, NQ, 2]: key tiles that a query tile sees in part, and wholly
    row_lists         int32 [H, NQ, NK]: the former from the left, the latter from the right
    column_counts     int32 [H, NK, 2]: the same from the side of the keys
    column_lists      int32 [H, NK, NQ]
    query_tile, key_tile: tokens of a tile; `aligned`: whether all keys of a tile are of one block
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
    """Plan attention of packed tokens, on their device and without waiting for it.

    `low` and `high`: integers [P, Tq] or [Tq]; `level`: integers [P, Tk] or [Tk], `HIDDEN` for a key that nothing
    sees; 1 to 3 channels P, all of which a key must satisfy. `query_lengths` and `key_lengths` [N]: the segments, in
    order, or N alone where they are equally long; a query sees keys of its own segment only, and tokens behind the last
    one see and are seen by nothing. `selection`: which blocks each query chose. Raises ValueError for what does not
    fit.
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
        selection_bits, block, aligned = selection.words, selection.block, selection.block_size % key_tile == 0
        expect_tensor(
            selection_bits, "selection.words", shape=(None, queries, None), dtypes=INTEGERS[:1], device=low.device
        )
        expect_tensor(block, "selection.block", shape=(keys,), dtypes=INTEGERS[:1], device=low.device)
    low = low.clamp(-HIDDEN, HIDDEN).int().contiguous()
    high = high.clamp(-HIDDEN, HIDDEN - 1).int().contiguous()
    level = level.clamp(-HIDDEN, HIDDEN).int().contiguous()
    lists = tile_lists(
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
    return AttentionPlan(low, high, level, selection_bits, block, *lists, query_tile, key_tile, aligned)


def batch_plan(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    *,
    selection: Selection | None = None,
    query_tile: int = 64,
    key_tile: int = 64,
) -> AttentionPlan:
    """Plan attention of a batch whose members are equally long: `low`, `high` [B, S] or [P, B, S], `level` the same.

    Raises ValueError for what does not fit.
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
