"""The backward kernels of block-sparse attention: queries by rows, keys, values and bias by columns.

Each program owns what it writes, so nothing is added atomically and results repeat bit by bit; the price is that the
scores of a pair of tiles are computed twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_tile import LOG2_E, RUNTIME_INTEGERS, load_rows, may_meet, store_rows


@triton.jit(do_not_specialize=["queries"])
def delta_kernel(
    output,
    output_gradient,
    log_sum_exp,
    log_sum_exp_gradient,
    delta,
    queries,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Write what is taken off every score's gradient: rowsum(output * gradient) less the log-sum-exp's gradient.

    Outputs are contiguous. Grid: rows of queries, heads.
    """
    start = tl.program_id(0) * ROWS
    head = tl.program_id(1)
    rows = start + tl.arange(0, ROWS)
    inside = rows < queries
    stride = HEADS * WIDTH
    far = (start.to(tl.int64) * HEADS + head) * WIDTH
    left = load_rows(output + far, stride, queries - start, ROWS, WIDTH, PADDED, False, UPCAST)
    right = load_rows(output_gradient + far, stride, queries - start, ROWS, WIDTH, PADDED, False, UPCAST)
    place = head.to(tl.int64) * queries + rows
    gradient = tl.load(log_sum_exp_gradient + place, mask=inside, other=0.0)
    # A row that saw nothing has no log-sum-exp to move, whatever gradient reaches it.
    seen = tl.load(log_sum_exp + place, mask=inside, other=float("-inf")) > float("-inf")
    taken = tl.sum(left.to(tl.float32) * right.to(tl.float32), 1) - tl.where(seen, gradient, 0.0)
    tl.store(delta + place, taken, mask=inside)


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
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
    words,
    block,
    bias,
    scale,
    queries,
    keys,
    width,
    row_tiles,
    column_tiles,
    query_stride,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    MASK_HEADS: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    SELECT: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    OWN: tl.constexpr,
    PIECE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Write the gradient of OWN queries of a tile, for one head, from one share of the keys that the tile meets.

    `output_gradient` [Tq, HEADS, WIDTH] and `query_gradient` [splits, Tq, HEADS, WIDTH] are contiguous. Grid: parts
    of query tiles, heads, splits.
    """
    tile = row_tiles - 1 - tl.program_id(0) // (QUERY_TILE // OWN)
    left_out = tl.program_id(0) % (QUERY_TILE // OWN) * OWN
    head = tl.program_id(1)
    split = tl.program_id(2)
    mask_head = head // (HEADS // MASK_HEADS)
    start = tl.load(query_tiles + tile * 3) + left_out
    length = tl.load(query_tiles + tile * 3 + 1) - left_out
    if length <= 0:
        return
    far_start = start.to(tl.int64)
    rows = tl.arange(0, OWN)
    inside = rows < length
    queries_here = load_rows(
        query + far_start * query_stride + head * WIDTH,
        query_stride,
        length,
        OWN,
        WIDTH,
        PADDED,
        False,
        UPCAST,
    )
    outer = load_rows(
        output_gradient + (far_start * HEADS + head) * WIDTH,
        HEADS * WIDTH,
        length,
        OWN,
        WIDTH,
        PADDED,
        False,
        UPCAST,
    )
    place_of_row = head.to(tl.int64) * queries + start + rows
    found = tl.load(log_sum_exp + place_of_row, mask=inside, other=float("-inf"))
    found = tl.where(found == float("-inf"), float("inf"), found) * LOG2_E
    taken = tl.load(delta + place_of_row, mask=inside, other=0.0)
    key_of_head = key + head // (HEADS // KEY_HEADS) * WIDTH
    value_of_head = value + head // (HEADS // KEY_HEADS) * WIDTH
    if BIAS_HEADS:
        bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
    gradient = tl.zeros([OWN, PADDED], tl.float32)

    PIECES: tl.constexpr = KEY_TILE // PIECE
    listed = mask_head.to(tl.int64) * row_tiles + tile
    partial = tl.load(counts + listed * 2)
    everything = partial + tl.load(counts + listed * 2 + 1)
    share = tl.cdiv(everything, tl.num_programs(2))
    first = tl.minimum(split * share, everything)
    last = tl.minimum(first + share, everything)
    for whole in tl.static_range(2):
        begin = tl.maximum(first, partial) if whole else tl.minimum(first, partial)
        end = tl.maximum(last, partial) if whole else tl.minimum(last, partial)
        for step in tl.range(begin * PIECES, end * PIECES, num_stages=STAGES):
            place = step // PIECES
            skipped = step % PIECES * PIECE
            entry = column_tiles - 1 - (place - partial) if whole else place
            number = tl.load(lists + listed * column_tiles + entry)
            key_start = tl.load(key_tiles + number * 3) + skipped
            key_length = tl.load(key_tiles + number * 3 + 1) - skipped
            far_key = key_start.to(tl.int64)
            keys_here = load_rows(
                key_of_head + far_key * key_stride, key_stride, key_length, PIECE, WIDTH, PADDED, whole, UPCAST
            )
            values_here = load_rows(
                value_of_head + far_key * value_stride, value_stride, key_length, PIECE, WIDTH, PADDED, whole, UPCAST
            )
            score = tl.dot(queries_here, tl.trans(keys_here), input_precision=PRECISION) * (scale * LOG2_E)
            if BIAS_HEADS:
                column = tl.arange(0, PIECE)
                added = tl.load(bias_of_head + key_start + column, mask=column < key_length, other=0.0)
                score += added[None, :] * LOG2_E
            if not whole:
                meets = may_meet(
                    low,
                    high,
                    level,
                    words,
                    block,
                    mask_head,
                    start,
                    length,
                    key_start,
                    key_length,
                    queries,
                    keys,
                    width,
                    CHANNELS,
                    SELECT,
                    OWN,
                    PIECE,
                )
                score = tl.where(meets, score, float("-inf"))
            weight = tl.exp2(score - found[:, None])
            steered = tl.dot(outer, tl.trans(values_here), input_precision=PRECISION)
            moved = weight * (steered - taken[:, None])
            gradient = tl.dot(moved.to(keys_here.dtype), keys_here, gradient, input_precision=PRECISION)
    store_rows(
        query_gradient + ((split * queries + far_start) * HEADS + head) * WIDTH,
        HEADS * WIDTH,
        length,
        gradient * scale,
        OWN,
        WIDTH,
        PADDED,
    )


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
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
    words,
    block,
    bias,
    scale,
    queries,
    keys,
    width,
    row_tiles,
    column_tiles,
    query_stride,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    MASK_HEADS: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    SELECT: tl.constexpr,
    QUERY_TILE: tl.constexpr,
    KEY_TILE: tl.constexpr,
    OWN: tl.constexpr,
    PIECE: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Write the gradients of OWN keys of a tile, their values and bias, for one key head.

    Its query heads are gone through in turn, PIECE queries at a time.
    All gradients are contiguous; the bias's is float32 [HEADS, Tk]. Scores are kept with keys as rows, so that they
    enter the products without being turned. Grid: parts of key tiles, key heads.
    """
    tile = tl.program_id(0) // (KEY_TILE // OWN)
    left_out = tl.program_id(0) % (KEY_TILE // OWN) * OWN
    key_head = tl.program_id(1)
    key_start = tl.load(key_tiles + tile * 3) + left_out
    key_length = tl.load(key_tiles + tile * 3 + 1) - left_out
    if key_length <= 0:
        return
    far_key = key_start.to(tl.int64)
    column = tl.arange(0, OWN)
    keys_here = load_rows(
        key + far_key * key_stride + key_head * WIDTH,
        key_stride,
        key_length,
        OWN,
        WIDTH,
        PADDED,
        False,
        UPCAST,
    )
    values_here = load_rows(
        value + far_key * value_stride + key_head * WIDTH,
        value_stride,
        key_length,
        OWN,
        WIDTH,
        PADDED,
        False,
        UPCAST,
    )
    to_key = tl.zeros([OWN, PADDED], tl.float32)
    to_value = tl.zeros([OWN, PADDED], tl.float32)
    PIECES: tl.constexpr = QUERY_TILE // PIECE
    for member in range(HEADS // KEY_HEADS):
        head = key_head * (HEADS // KEY_HEADS) + member
        mask_head = head // (HEADS // MASK_HEADS)
        if BIAS_HEADS:
            bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
            added = tl.load(bias_of_head + key_start + column, mask=column < key_length, other=0.0)
        to_bias = tl.zeros([OWN], tl.float32)
        listed = mask_head.to(tl.int64) * column_tiles + tile
        partial = tl.load(counts + listed * 2)
        everything = partial + tl.load(counts + listed * 2 + 1)
        for whole in tl.static_range(2):
            begin = partial if whole else partial * 0
            end = everything if whole else partial
            for step in tl.range(begin * PIECES, end * PIECES, num_stages=STAGES):
                place = step // PIECES
                skipped = step % PIECES * PIECE
                entry = row_tiles - 1 - (place - partial) if whole else place
                number = tl.load(lists + listed * row_tiles + entry)
                start = tl.load(query_tiles + number * 3) + skipped
                length = tl.load(query_tiles + number * 3 + 1) - skipped
                far_start = start.to(tl.int64)
                rows = tl.arange(0, PIECE)
                inside = rows < length
                queries_here = load_rows(
                    query + far_start * query_stride + head * WIDTH,
                    query_stride,
                    length,
                    PIECE,
                    WIDTH,
                    PADDED,
                    False,
                    UPCAST,
                )
                outer = load_rows(
                    output_gradient + (far_start * HEADS + head) * WIDTH,
                    HEADS * WIDTH,
                    length,
                    PIECE,
                    WIDTH,
                    PADDED,
                    False,
                    UPCAST,
                )
                place_of_row = head.to(tl.int64) * queries + start + rows
                found = tl.load(log_sum_exp + place_of_row, mask=inside, other=float("-inf"))
                found = tl.where(found == float("-inf"), float("inf"), found) * LOG2_E
                taken = tl.load(delta + place_of_row, mask=inside, other=0.0)
                score = tl.dot(keys_here, tl.trans(queries_here), input_precision=PRECISION) * (scale * LOG2_E)
                if BIAS_HEADS:
                    score += added[:, None] * LOG2_E
                if not whole:
                    meets = may_meet(
                        low,
                        high,
                        level,
                        words,
                        block,
                        mask_head,
                        start,
                        length,
                        key_start,
                        key_length,
                        queries,
                        keys,
                        width,
                        CHANNELS,
                        SELECT,
                        PIECE,
                        OWN,
                    )
                    score = tl.where(tl.trans(meets), score, float("-inf"))
                weight = tl.exp2(score - found[None, :])
                to_value = tl.dot(weight.to(outer.dtype), outer, to_value, input_precision=PRECISION)
                steered = tl.dot(values_here, tl.trans(outer), input_precision=PRECISION)
                moved = weight * (steered - taken[None, :])
                to_key = tl.dot(moved.to(queries_here.dtype), queries_here, to_key, input_precision=PRECISION)
                if BIAS_HEADS:
                    to_bias += tl.sum(moved, 1)
        if BIAS_HEADS:
            written = bias_gradient + head.to(tl.int64) * keys + key_start + column
            tl.store(written, to_bias, mask=column < key_length)
    far = (far_key * KEY_HEADS + key_head) * WIDTH
    stride = KEY_HEADS * WIDTH
    store_rows(key_gradient + far, stride, key_length, to_key * scale, OWN, WIDTH, PADDED)
    store_rows(value_gradient + far, stride, key_length, to_value, OWN, WIDTH, PADDED)
