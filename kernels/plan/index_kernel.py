"""Triton kernels that cut packed sequences into tiles and list the visible pairs of tiles.

Four launches make the lists of a mask, without a host synchronization. No mask is written to memory: the smallest and
the largest level of a tile decide what is visible.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..common.launch import launcher, next_power_of_2

INT32_MIN = tl.constexpr(-(2**31))
INT32_MAX = tl.constexpr(2**31 - 1)


@triton.jit
def _bitwise_or(left, right):
    return left | right


@triton.jit
def _bitwise_and(left, right):
    return left & right


@triton.jit(do_not_specialize=["tokens", "segments", "outside"])
def cut_kernel(
    offsets,
    low,
    high,
    tiles,
    ranges,
    tokens,
    segments,
    outside,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write one tile's (start, length, segment) and, for each channel, the extremes of its bounds. Grid: tiles.

    Tokens behind the last segment are cut as well, so that every token belongs to a tile.
    """
    tile = tl.program_id(0)
    start = tile * 0
    length = tile * 0
    segment = tile * 0 + outside
    before = tile * 0
    for first in range(0, segments + 1, CHUNK):
        number = first + tl.arange(0, CHUNK)
        begin = tl.load(offsets + number, mask=number <= segments, other=0)
        end = tl.load(offsets + number + 1, mask=number < segments, other=INT32_MAX)
        begin = tl.minimum(tl.maximum(begin, 0), tokens)
        end = tl.minimum(end, tokens)
        size = tl.where(number <= segments, tl.maximum(end - begin, 0), 0)
        count = (size + SIZE - 1) // SIZE
        last = before + tl.cumsum(count, 0)
        is_owner = (tile >= last - count) & (tile < last)
        inner = (tile - (last - count)) * SIZE
        start += tl.sum(tl.where(is_owner, begin + inner, 0), 0)
        length += tl.sum(tl.where(is_owner, tl.minimum(size - inner, SIZE), 0), 0)
        segment += tl.sum(tl.where(is_owner & (number < segments), number - outside, 0), 0)
        before += tl.sum(count, 0)
    tl.store(tiles + tile * 3, start)
    tl.store(tiles + tile * 3 + 1, length)
    tl.store(tiles + tile * 3 + 2, segment)
    row = tl.arange(0, ROWS)
    inside = row < length
    for channel in tl.static_range(CHANNELS):  # pyright: ignore[reportGeneralTypeIssues]  # Triton's stubs: no __next__
        offset = channel * tokens + start + row
        written = ranges + (tile * CHANNELS + channel) * 4
        tl.store(written, tl.min(tl.load(low + offset, mask=inside, other=INT32_MAX), 0))
        tl.store(written + 1, tl.max(tl.load(low + offset, mask=inside, other=INT32_MIN), 0))
        tl.store(written + 2, tl.min(tl.load(high + offset, mask=inside, other=INT32_MAX), 0))
        tl.store(written + 3, tl.max(tl.load(high + offset, mask=inside, other=INT32_MIN), 0))


@triton.jit(do_not_specialize=["tokens", "count", "word_count"])
def query_selection_kernel(selection_bits, tiles, any_bits, all_bits, tokens, count, word_count, SIZE: tl.constexpr):
    """Write which blocks any query of a tile selected, and which all of them did. Grid: tiles, heads."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(tiles + tile * 3)
    length = tl.load(tiles + tile * 3 + 1)
    row = tl.arange(0, SIZE)
    inside = row < length
    written = (head * count + tile) * (word_count + 1)
    for word in range(word_count):
        address = selection_bits + (head * tokens + start + row) * word_count + word
        tl.store(any_bits + written + word, tl.reduce(tl.load(address, mask=inside, other=0), 0, _bitwise_or))
        tl.store(all_bits + written + word, tl.reduce(tl.load(address, mask=inside, other=-1), 0, _bitwise_and))
    tl.store(any_bits + written + word_count, 1)
    tl.store(all_bits + written + word_count, 1)


@triton.jit(do_not_specialize=["word_count"])
def key_selection_kernel(block, tiles, key_bits, word_count, SIZE: tl.constexpr):
    """Write which blocks the keys of a tile belong to; the last word: any is always visible. Grid: tiles."""
    tile = tl.program_id(0)
    start = tl.load(tiles + tile * 3)
    length = tl.load(tiles + tile * 3 + 1)
    row = tl.arange(0, SIZE)
    inside = row < length
    number = tl.load(block + start + row, mask=inside, other=0)
    for word in range(word_count):
        bit = tl.where(inside & (number >= 0) & (number // 32 == word), 1 << (number % 32), 0)
        tl.store(key_bits + tile * (word_count + 1) + word, tl.reduce(bit, 0, _bitwise_or))
    always_visible = tl.max(tl.where(inside & (number < 0), 1, 0), 0)
    tl.store(key_bits + tile * (word_count + 1) + word_count, always_visible)


@triton.jit(do_not_specialize=["own_count", "other_count", "word_count"])
def list_kernel(
    query_tiles,
    query_ranges,
    key_tiles,
    key_ranges,
    any_bits,
    all_bits,
    key_bits,
    counts,
    lists,
    own_count,
    other_count,
    word_count,
    CHANNELS: tl.constexpr,
    KEY_TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    SELECT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """List the visible tiles of one tile: partially visible ones from the left, full ones from the right.

    The tile is a query tile, or a key tile if COLUMNS is set. The mask alone decides the order within a list. Grid:
    tiles, heads.
    """
    own = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    query_count = other_count if COLUMNS else own_count
    partial_count = own * 0
    full_count = own * 0
    written = lists + (head * own_count + own) * other_count
    for first in range(0, other_count, CHUNK):
        position = first + tl.arange(0, CHUNK)
        other = tl.minimum(position, other_count - 1)
        query_tile = other if COLUMNS else own
        key_tile = own if COLUMNS else other
        query_length = tl.load(query_tiles + query_tile * 3 + 1)
        key_length = tl.load(key_tiles + key_tile * 3 + 1)
        same = tl.load(query_tiles + query_tile * 3 + 2) == tl.load(key_tiles + key_tile * 3 + 2)
        visible = (position < other_count) & same & (query_length > 0) & (key_length > 0)
        full = visible & (key_length == KEY_TILE)
        for channel in tl.static_range(CHANNELS):  # pyright: ignore[reportGeneralTypeIssues]  # Triton's stubs: no __next__
            bounds = query_ranges + (query_tile * CHANNELS + channel) * 4
            levels = key_ranges + (key_tile * CHANNELS + channel) * 4
            least = tl.load(levels)
            greatest = tl.load(levels + 1)
            visible = visible & (greatest >= tl.load(bounds)) & (least <= tl.load(bounds + 3))
            full = full & (least >= tl.load(bounds + 1)) & (greatest <= tl.load(bounds + 2))
        if SELECT:
            any_selected = position < 0
            all_selected = position >= 0
            for word in range(word_count + 1):
                key_word = tl.load(key_bits + key_tile * (word_count + 1) + word)
                query_offset = (head * query_count + query_tile) * (word_count + 1) + word
                any_selected = any_selected | ((tl.load(any_bits + query_offset) & key_word) != 0)
                all_selected = all_selected & ((tl.load(all_bits + query_offset) & key_word) == key_word)
            visible = visible & any_selected
            full = full & all_selected
        full = (full & visible).to(tl.int32)
        partial = visible.to(tl.int32) - full
        from_left = partial_count + tl.cumsum(partial, 0) - 1
        from_right = other_count - full_count - tl.cumsum(full, 0)
        tl.store(written + tl.where(full > 0, from_right, from_left), position, mask=visible)
        partial_count += tl.sum(partial, 0)
        full_count += tl.sum(full, 0)
    tl.store(counts + (head * own_count + own) * 2, partial_count)
    tl.store(counts + (head * own_count + own) * 2 + 1, full_count)


def launch_cut(
    offsets: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    tokens: int,
    size: int,
    capacity: int,
    outside: int,
    channels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tiles [capacity, 3] and the ranges [capacity, channels, 4] of their bounds [channels, tokens]."""
    tiles = torch.empty(capacity, 3, dtype=torch.int32, device=offsets.device)
    ranges = torch.empty(capacity, channels, 4, dtype=torch.int32, device=offsets.device)
    launcher(cut_kernel, (capacity,))(
        offsets,
        low,
        high,
        tiles,
        ranges,
        tokens,
        offsets.shape[0] - 1,
        outside,
        CHANNELS=channels,
        SIZE=size,
        ROWS=next_power_of_2(size) if channels else 1,
        CHUNK=64,
        num_warps=1,
    )
    return tiles, ranges


def launch_lists(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    selection_bits: torch.Tensor | None,
    block: torch.Tensor | None,
    sizes: tuple[int, int],
    capacities: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `index.tile_lists` with the kernels."""
    channels, device = low.shape[0], low.device
    rows, columns = capacities
    query_tiles, query_ranges = launch_cut(query_offsets, low, high, low.shape[1], sizes[0], rows, -1, channels)
    key_tiles, key_ranges = launch_cut(key_offsets, level, level, level.shape[1], sizes[1], columns, -2, channels)
    heads = 1 if selection_bits is None else selection_bits.shape[0]
    word_count = 0 if selection_bits is None else selection_bits.shape[2]
    any_bits = torch.empty(heads, rows, word_count + 1, dtype=torch.int32, device=device)
    all_bits = torch.empty_like(any_bits)
    key_bits = torch.empty(columns, word_count + 1, dtype=torch.int32, device=device)
    if selection_bits is not None:
        launcher(query_selection_kernel, (rows, heads))(
            selection_bits,
            query_tiles,
            any_bits,
            all_bits,
            selection_bits.shape[1],
            rows,
            word_count,
            SIZE=sizes[0],
            num_warps=1,
        )
        launch_keys = launcher(key_selection_kernel, (columns,))
        launch_keys(block, key_tiles, key_bits, word_count, SIZE=sizes[1], num_warps=1)
    counts_and_lists = []
    for own, other, transposed in ((rows, columns, False), (columns, rows, True)):
        counts = torch.empty(heads, own, 2, dtype=torch.int32, device=device)
        lists = torch.zeros(heads, own, other, dtype=torch.int32, device=device)
        launcher(list_kernel, (own, heads))(
            query_tiles,
            query_ranges,
            key_tiles,
            key_ranges,
            any_bits,
            all_bits,
            key_bits,
            counts,
            lists,
            own,
            other,
            word_count,
            CHANNELS=channels,
            KEY_TILE=sizes[1],
            COLUMNS=transposed,
            SELECT=selection_bits is not None,
            CHUNK=128,
            num_warps=1,
        )
        counts_and_lists.append((counts, lists))
    rows_of_tiles, columns_of_tiles = counts_and_lists
    return query_tiles, key_tiles, *rows_of_tiles, *columns_of_tiles
