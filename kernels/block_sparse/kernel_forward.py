"""The forward kernel of block-sparse attention, and the kernel that combines splits of the keys.

The softmax is computed online, as in FlashAttention-2 (Dao, 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_tile import LN_2, LOG2_E, UNSPECIALIZED_ARGUMENTS, load_rows, store_rows, visibility_mask


@triton.jit(do_not_specialize=UNSPECIALIZED_ARGUMENTS)
def forward_kernel(
    query,
    key,
    value,
    output,
    log_sum_exp,
    query_tiles,
    key_tiles,
    counts,
    lists,
    low,
    high,
    level,
    selection_bits,
    block,
    bias,
    scale,
    queries,
    keys,
    word_count,
    row_tiles,
    column_tiles,
    query_stride,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    MASK_HEADS: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SELECT: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    OUTER_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Attend with OUTER_TILE queries of a tile, for one head, to one split of the visible keys, INNER_TILE at a time.

    `output` [splits, Tq, HEADS, HEAD_SIZE] and `log_sum_exp` [splits, HEADS, Tq] are contiguous; BIAS_HEADS is 0
    without a bias. Grid: parts of query tiles, heads, splits.
    """
    # Start with the last tiles: they see the most keys under causal masks.
    tile = row_tiles - 1 - tl.program_id(0) // (QUERY_TILE // OUTER_TILE)
    outer_offset = tl.program_id(0) % (QUERY_TILE // OUTER_TILE) * OUTER_TILE
    head = tl.program_id(1)
    split = tl.program_id(2)
    mask_head = head // (HEADS // MASK_HEADS)
    start = tl.load(query_tiles + tile * 3) + outer_offset
    length = tl.load(query_tiles + tile * 3 + 1) - outer_offset
    if length <= 0:
        return
    start_int64 = start.to(tl.int64)
    rows = tl.arange(0, OUTER_TILE)
    query_rows = load_rows(
        query + start_int64 * query_stride + head * HEAD_SIZE,
        query_stride,
        length,
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
        False,
        UPCAST,
    )
    key_of_head = key + head // (HEADS // KEY_HEADS) * HEAD_SIZE
    value_of_head = value + head // (HEADS // KEY_HEADS) * HEAD_SIZE
    if BIAS_HEADS:
        bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
    row_max = tl.full([OUTER_TILE], float("-inf"), tl.float32)
    row_sum = tl.zeros([OUTER_TILE], tl.float32)
    accumulator = tl.zeros([OUTER_TILE, PADDED_SIZE], tl.float32)

    INNER_TILES: tl.constexpr = KEY_TILE // INNER_TILE
    list_row = mask_head.to(tl.int64) * row_tiles + tile
    partial_count = tl.load(counts + list_row * 2)
    tile_count = partial_count + tl.load(counts + list_row * 2 + 1)
    tiles_per_split = tl.cdiv(tile_count, tl.num_programs(2))
    first = tl.minimum(split * tiles_per_split, tile_count)
    last = tl.minimum(first + tiles_per_split, tile_count)
    for is_full in tl.static_range(2):
        # First the partially visible tiles, from the left of the list; then the full ones, from its right.
        begin = tl.maximum(first, partial_count) if is_full else tl.minimum(first, partial_count)
        end = tl.maximum(last, partial_count) if is_full else tl.minimum(last, partial_count)
        for step in tl.range(begin * INNER_TILES, end * INNER_TILES, num_stages=STAGES):
            list_position = step // INNER_TILES
            inner_offset = step % INNER_TILES * INNER_TILE
            entry = column_tiles - 1 - (list_position - partial_count) if is_full else list_position
            tile_index = tl.load(lists + list_row * column_tiles + entry)
            key_start = tl.load(key_tiles + tile_index * 3) + inner_offset
            key_length = tl.load(key_tiles + tile_index * 3 + 1) - inner_offset
            key_start_int64 = key_start.to(tl.int64)
            key_rows = load_rows(
                key_of_head + key_start_int64 * key_stride,
                key_stride,
                key_length,
                INNER_TILE,
                HEAD_SIZE,
                PADDED_SIZE,
                is_full,
                UPCAST,
            )
            # [OUTER_TILE, INNER_TILE], in units of log2: exp2 is faster than exp.
            score = tl.dot(query_rows, tl.trans(key_rows), input_precision=PRECISION) * (scale * LOG2_E)
            if BIAS_HEADS:
                column = tl.arange(0, INNER_TILE)
                bias_row = tl.load(bias_of_head + key_start + column, mask=column < key_length, other=0.0)
                score += bias_row[None, :] * LOG2_E
            if not is_full:
                visible = visibility_mask(
                    low,
                    high,
                    level,
                    selection_bits,
                    block,
                    mask_head,
                    start,
                    length,
                    key_start,
                    key_length,
                    queries,
                    keys,
                    word_count,
                    CHANNELS,
                    SELECT,
                    OUTER_TILE,
                    INNER_TILE,
                )
                score = tl.where(visible, score, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(score, 1))
            # A row that has seen nothing yet has a maximum of -inf, and -inf - -inf is NaN.
            finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
            weight = tl.exp2(score - finite_max[:, None])  # [OUTER_TILE, INNER_TILE]
            rescale = tl.exp2(row_max - finite_max)
            row_sum = row_sum * rescale + tl.sum(weight, 1)
            value_rows = load_rows(
                value_of_head + key_start_int64 * value_stride,
                value_stride,
                key_length,
                INNER_TILE,
                HEAD_SIZE,
                PADDED_SIZE,
                is_full,
                UPCAST,
            )
            accumulator = accumulator * rescale[:, None]  # [OUTER_TILE, PADDED_SIZE]
            accumulator = tl.dot(weight.to(value_rows.dtype), value_rows, accumulator, input_precision=PRECISION)
            row_max = new_max

    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    store_rows(
        output + ((split * queries + start_int64) * HEADS + head) * HEAD_SIZE,
        HEADS * HEAD_SIZE,
        length,
        accumulator / row_sum[:, None],
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
    )
    row_log_sum_exp = tl.where(empty, float("-inf"), (row_max + tl.log2(row_sum)) * LN_2)
    row_offset = (split * HEADS + head).to(tl.int64) * queries + start + rows
    tl.store(log_sum_exp + row_offset, row_log_sum_exp, mask=rows < length)


@triton.jit(do_not_specialize=["queries", "splits"])
def combine_kernel(
    part,
    part_log_sum_exp,
    output,
    log_sum_exp,
    queries,
    splits,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Combine the splits, always in the same order. Grid: rows of queries, heads."""
    start = tl.program_id(0) * ROWS
    head = tl.program_id(1)
    rows = start + tl.arange(0, ROWS)
    inside = rows < queries
    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(splits):
        row_offset = (split * HEADS + head).to(tl.int64) * queries + rows
        row_max = tl.maximum(row_max, tl.load(part_log_sum_exp + row_offset, mask=inside, other=float("-inf")))
    finite_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    row_sum = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, PADDED_SIZE], tl.float32)
    base_offset = (start.to(tl.int64) * HEADS + head) * HEAD_SIZE
    part_pointer = part + base_offset
    for split in range(splits):
        row_offset = (split * HEADS + head).to(tl.int64) * queries + rows
        row_log_sum_exp = tl.load(part_log_sum_exp + row_offset, mask=inside, other=float("-inf"))
        weight = tl.exp2((row_log_sum_exp - finite_max) * LOG2_E)
        row_sum += weight
        part_rows = load_rows(
            part_pointer, HEADS * HEAD_SIZE, queries - start, ROWS, HEAD_SIZE, PADDED_SIZE, False, False
        )
        accumulator += weight[:, None] * part_rows
        part_pointer += tl.cast(queries, tl.int64) * HEADS * HEAD_SIZE
    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    store_rows(
        output + base_offset,
        HEADS * HEAD_SIZE,
        queries - start,
        accumulator / row_sum[:, None],
        ROWS,
        HEAD_SIZE,
        PADDED_SIZE,
    )
    tl.store(
        log_sum_exp + head.to(tl.int64) * queries + rows,
        tl.where(empty, float("-inf"), finite_max + tl.log2(row_sum) * LN_2),
        mask=inside,
    )
