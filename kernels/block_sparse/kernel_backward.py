"""The backward kernels of block-sparse attention: one for queries, one for keys, values and bias.

Each program owns the gradients that it writes. Without atomic additions results repeat bit by bit; the price is that
the scores of a pair of tiles are computed twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_tile import LOG2_E, UNSPECIALIZED_ARGUMENTS, load_rows, store_rows, visibility_mask


@triton.jit(do_not_specialize=["queries"])
def delta_kernel(
    output,
    output_gradient,
    log_sum_exp,
    log_sum_exp_gradient,
    delta,
    queries,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Write delta = rowsum(output * output gradient) - log-sum-exp gradient, which every score's gradient subtracts.

    Outputs are contiguous. Grid: rows of queries, heads.
    """
    start = tl.program_id(0) * ROWS
    head = tl.program_id(1)
    rows = start + tl.arange(0, ROWS)
    inside = rows < queries
    stride = HEADS * HEAD_SIZE
    base_offset = (start.to(tl.int64) * HEADS + head) * HEAD_SIZE
    left = load_rows(output + base_offset, stride, queries - start, ROWS, HEAD_SIZE, PADDED_SIZE, False, UPCAST)
    right = load_rows(
        output_gradient + base_offset, stride, queries - start, ROWS, HEAD_SIZE, PADDED_SIZE, False, UPCAST
    )
    row_offset = head.to(tl.int64) * queries + rows
    gradient = tl.load(log_sum_exp_gradient + row_offset, mask=inside, other=0.0)
    # A row that saw nothing has no log-sum-exp: ignore its gradient, which may be NaN.
    seen = tl.load(log_sum_exp + row_offset, mask=inside, other=float("-inf")) > float("-inf")
    row_delta = tl.sum(left.to(tl.float32) * right.to(tl.float32), 1) - tl.where(seen, gradient, 0.0)
    tl.store(delta + row_offset, row_delta, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED_ARGUMENTS)
def query_gradient_kernel(
    query,
    key,
    value,
    output_gradient,
    query_gradient,
    log_sum_exp,
    delta,
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
    """Write the gradient of OUTER_TILE queries of a tile, for one head, from one split of the visible keys.

    `output_gradient` [Tq, HEADS, HEAD_SIZE] and `query_gradient` [splits, Tq, HEADS, HEAD_SIZE] are contiguous. Grid:
    parts of query tiles, heads, splits.
    """
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
    inside = rows < length
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
    output_gradient_rows = load_rows(
        output_gradient + (start_int64 * HEADS + head) * HEAD_SIZE,
        HEADS * HEAD_SIZE,
        length,
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
        False,
        UPCAST,
    )
    row_offset = head.to(tl.int64) * queries + start + rows
    row_log_sum_exp = tl.load(log_sum_exp + row_offset, mask=inside, other=float("-inf"))
    row_log_sum_exp = tl.where(row_log_sum_exp == float("-inf"), float("inf"), row_log_sum_exp) * LOG2_E
    row_delta = tl.load(delta + row_offset, mask=inside, other=0.0)
    key_of_head = key + head // (HEADS // KEY_HEADS) * HEAD_SIZE
    value_of_head = value + head // (HEADS // KEY_HEADS) * HEAD_SIZE
    if BIAS_HEADS:
        bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
    gradient = tl.zeros([OUTER_TILE, PADDED_SIZE], tl.float32)

    INNER_TILES: tl.constexpr = KEY_TILE // INNER_TILE
    list_row = mask_head.to(tl.int64) * row_tiles + tile
    partial_count = tl.load(counts + list_row * 2)
    tile_count = partial_count + tl.load(counts + list_row * 2 + 1)
    tiles_per_split = tl.cdiv(tile_count, tl.num_programs(2))
    first = tl.minimum(split * tiles_per_split, tile_count)
    last = tl.minimum(first + tiles_per_split, tile_count)
    for is_full in tl.static_range(2):
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
            weight = tl.exp2(score - row_log_sum_exp[:, None])  # [OUTER_TILE, INNER_TILE]
            weight_gradient = tl.dot(output_gradient_rows, tl.trans(value_rows), input_precision=PRECISION)
            score_gradient = weight * (weight_gradient - row_delta[:, None])
            gradient = tl.dot(score_gradient.to(key_rows.dtype), key_rows, gradient, input_precision=PRECISION)
    store_rows(
        query_gradient + ((split * queries + start_int64) * HEADS + head) * HEAD_SIZE,
        HEADS * HEAD_SIZE,
        length,
        gradient * scale,
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED_ARGUMENTS)
def key_gradient_kernel(
    query,
    key,
    value,
    output_gradient,
    key_gradient,
    value_gradient,
    bias_gradient,
    log_sum_exp,
    delta,
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
    """Write the gradients of OUTER_TILE keys of a tile, their values and bias, for one key head.

    The query heads of the key head follow one another, INNER_TILE queries at a time. All gradients are contiguous; the
    bias gradient is float32 [HEADS, Tk]. Scores have keys as rows, so that the products need no transposition. Grid:
    parts of key tiles, key heads.
    """
    tile = tl.program_id(0) // (KEY_TILE // OUTER_TILE)
    outer_offset = tl.program_id(0) % (KEY_TILE // OUTER_TILE) * OUTER_TILE
    key_head = tl.program_id(1)
    key_start = tl.load(key_tiles + tile * 3) + outer_offset
    key_length = tl.load(key_tiles + tile * 3 + 1) - outer_offset
    if key_length <= 0:
        return
    key_start_int64 = key_start.to(tl.int64)
    column = tl.arange(0, OUTER_TILE)
    key_rows = load_rows(
        key + key_start_int64 * key_stride + key_head * HEAD_SIZE,
        key_stride,
        key_length,
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
        False,
        UPCAST,
    )
    value_rows = load_rows(
        value + key_start_int64 * value_stride + key_head * HEAD_SIZE,
        value_stride,
        key_length,
        OUTER_TILE,
        HEAD_SIZE,
        PADDED_SIZE,
        False,
        UPCAST,
    )
    key_accumulator = tl.zeros([OUTER_TILE, PADDED_SIZE], tl.float32)
    value_accumulator = tl.zeros([OUTER_TILE, PADDED_SIZE], tl.float32)
    INNER_TILES: tl.constexpr = QUERY_TILE // INNER_TILE
    for member in range(HEADS // KEY_HEADS):
        head = key_head * (HEADS // KEY_HEADS) + member
        mask_head = head // (HEADS // MASK_HEADS)
        if BIAS_HEADS:
            bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
            bias_row = tl.load(bias_of_head + key_start + column, mask=column < key_length, other=0.0)
        bias_accumulator = tl.zeros([OUTER_TILE], tl.float32)
        list_row = mask_head.to(tl.int64) * column_tiles + tile
        partial_count = tl.load(counts + list_row * 2)
        tile_count = partial_count + tl.load(counts + list_row * 2 + 1)
        for is_full in tl.static_range(2):
            begin = partial_count if is_full else partial_count * 0
            end = tile_count if is_full else partial_count
            for step in tl.range(begin * INNER_TILES, end * INNER_TILES, num_stages=STAGES):
                list_position = step // INNER_TILES
                inner_offset = step % INNER_TILES * INNER_TILE
                entry = row_tiles - 1 - (list_position - partial_count) if is_full else list_position
                tile_index = tl.load(lists + list_row * row_tiles + entry)
                start = tl.load(query_tiles + tile_index * 3) + inner_offset
                length = tl.load(query_tiles + tile_index * 3 + 1) - inner_offset
                start_int64 = start.to(tl.int64)
                rows = tl.arange(0, INNER_TILE)
                inside = rows < length
                query_rows = load_rows(
                    query + start_int64 * query_stride + head * HEAD_SIZE,
                    query_stride,
                    length,
                    INNER_TILE,
                    HEAD_SIZE,
                    PADDED_SIZE,
                    False,
                    UPCAST,
                )
                output_gradient_rows = load_rows(
                    output_gradient + (start_int64 * HEADS + head) * HEAD_SIZE,
                    HEADS * HEAD_SIZE,
                    length,
                    INNER_TILE,
                    HEAD_SIZE,
                    PADDED_SIZE,
                    False,
                    UPCAST,
                )
                row_offset = head.to(tl.int64) * queries + start + rows
                row_log_sum_exp = tl.load(log_sum_exp + row_offset, mask=inside, other=float("-inf"))
                row_log_sum_exp = tl.where(row_log_sum_exp == float("-inf"), float("inf"), row_log_sum_exp) * LOG2_E
                row_delta = tl.load(delta + row_offset, mask=inside, other=0.0)
                score = tl.dot(key_rows, tl.trans(query_rows), input_precision=PRECISION) * (scale * LOG2_E)
                if BIAS_HEADS:
                    score += bias_row[:, None] * LOG2_E
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
                        INNER_TILE,
                        OUTER_TILE,
                    )
                    score = tl.where(tl.trans(visible), score, float("-inf"))
                weight = tl.exp2(score - row_log_sum_exp[None, :])  # [OUTER_TILE, INNER_TILE]: keys, queries
                value_accumulator = tl.dot(
                    weight.to(output_gradient_rows.dtype),
                    output_gradient_rows,
                    value_accumulator,
                    input_precision=PRECISION,
                )
                weight_gradient = tl.dot(value_rows, tl.trans(output_gradient_rows), input_precision=PRECISION)
                score_gradient = weight * (weight_gradient - row_delta[None, :])
                key_accumulator = tl.dot(
                    score_gradient.to(query_rows.dtype), query_rows, key_accumulator, input_precision=PRECISION
                )
                if BIAS_HEADS:
                    bias_accumulator += tl.sum(score_gradient, 1)
        if BIAS_HEADS:
            written = bias_gradient + head.to(tl.int64) * keys + key_start + column
            tl.store(written, bias_accumulator, mask=column < key_length)
    base_offset = (key_start_int64 * KEY_HEADS + key_head) * HEAD_SIZE
    stride = KEY_HEADS * HEAD_SIZE
    store_rows(
        key_gradient + base_offset, stride, key_length, key_accumulator * scale, OUTER_TILE, HEAD_SIZE, PADDED_SIZE
    )
    store_rows(value_gradient + base_offset, stride, key_length, value_accumulator, OUTER_TILE, HEAD_SIZE, PADDED_SIZE)
