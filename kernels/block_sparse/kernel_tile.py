"""What the kernels of block-sparse attention share: loading and storing rows of a tile, and the mask of two tiles."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

UNSPECIALIZED_ARGUMENTS = [
    "queries",
    "keys",
    "word_count",
    "row_tiles",
    "column_tiles",
]
"""Sizes that change from call to call: a kernel is never compiled again for them."""


@triton.jit
def load_rows(
    pointer,
    stride,
    length,
    ROWS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    FULL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Load rows `stride` apart, [ROWS, PADDED_SIZE]; rows from `length` and columns from HEAD_SIZE on are zero."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, PADDED_SIZE)[None, :]
    address = pointer + row * stride + column
    if FULL and HEAD_SIZE == PADDED_SIZE:
        rows = tl.load(address)
    elif FULL:
        rows = tl.load(address, mask=column < HEAD_SIZE, other=0.0)
    elif HEAD_SIZE == PADDED_SIZE:
        rows = tl.load(address, mask=row < length, other=0.0)
    else:
        rows = tl.load(address, mask=(row < length) & (column < HEAD_SIZE), other=0.0)
    if UPCAST:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def store_rows(pointer, stride, length, rows, ROWS: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr):
    """Store rows `stride` apart, except rows from `length` and columns from HEAD_SIZE on."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, PADDED_SIZE)[None, :]
    inside = (row < length) & (column < HEAD_SIZE)
    tl.store(pointer + row * stride + column, rows.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def visibility_mask(
    low,
    high,
    level,
    selection_bits,
    block,
    mask_head,
    query_start,
    query_length,
    key_start,
    key_length,
    queries,
    keys,
    word_count,
    CHANNELS: tl.constexpr,
    SELECT: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
):
    """Return the mask [QUERY_TILE, KEY_TILE]: which queries of a tile see which keys of another.

    SELECT: 0 no selection, 1 all keys of a tile belong to one block, 2 each key has its own block.
    """
    row = tl.arange(0, QUERY_TILE)
    column = tl.arange(0, KEY_TILE)
    row_inside = row < query_length
    column_inside = column < key_length
    visible = row_inside[:, None] & column_inside[None, :]
    for channel in tl.static_range(CHANNELS):  # pyright: ignore[reportGeneralTypeIssues]  # Triton's stubs: no __next__
        least = tl.load(low + channel * queries + query_start + row, mask=row_inside, other=1)
        greatest = tl.load(high + channel * queries + query_start + row, mask=row_inside, other=0)
        levels = tl.load(level + channel * keys + key_start + column, mask=column_inside, other=0)
        visible = visible & (levels[None, :] >= least[:, None]) & (levels[None, :] <= greatest[:, None])
    if SELECT == 1:
        # An inner tile may lie behind the tile's last key.
        block_index = tl.load(block + key_start, mask=key_length > 0, other=-1)
        address = (
            selection_bits + (mask_head.to(tl.int64) * queries + query_start + row) * word_count + block_index // 32
        )
        has_block = row_inside & (block_index >= 0) & (block_index < 32 * word_count)
        chosen = (tl.load(address, mask=has_block, other=0) >> (block_index % 32)) & 1
        visible = visible & ((chosen == 1) | (block_index < 0))[:, None]
    if SELECT == 2:
        block_index = tl.load(block + key_start + column, mask=column_inside, other=-1)
        address = (
            selection_bits
            + (mask_head.to(tl.int64) * queries + query_start + row[:, None]) * word_count
            + (block_index // 32)[None, :]
        )
        has_block = row_inside[:, None] & ((block_index >= 0) & (block_index < 32 * word_count))[None, :]
        chosen = (tl.load(address, mask=has_block, other=0) >> (block_index % 32)[None, :]) & 1
        visible = visible & ((chosen == 1) | (block_index < 0)[None, :])
    return visible
