"""The forward kernel of block-sparse attention, and the one that joins split keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_tile import LN_2, LOG2_E, RUNTIME_INTEGERS, load_rows, may_meet, store_rows


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
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
    """Attend with OWN queries of a tile, for one head, to one share of the keys that the tile meets, PIECE at a time.

    `output` [splits, Tq, HEADS, WIDTH] and `log_sum_exp` [splits, HEADS, Tq] are contiguous; BIAS_HEADS is 0 without a
    bias. Grid: parts of query tiles, heads, splits.
    """
    # Late tiles see the most under causal masks: they come first.
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
    key_of_head = key + head // (HEADS // KEY_HEADS) * WIDTH
    value_of_head = value + head // (HEADS // KEY_HEADS) * WIDTH
    if BIAS_HEADS:
        bias_of_head = bias + (head // (HEADS // BIAS_HEADS)).to(tl.int64) * keys
    greatest = tl.full([OWN], float("-inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    gathered = tl.zeros([OWN, PADDED], tl.float32)

    PIECES: tl.constexpr = KEY_TILE // PIECE
    listed = mask_head.to(tl.int64) * row_tiles + tile
    partial = tl.load(counts + listed * 2)
    everything = partial + tl.load(counts + listed * 2 + 1)
    share = tl.cdiv(everything, tl.num_programs(2))
    first = tl.minimum(split * share, everything)
    last = tl.minimum(first + share, everything)
    for whole in tl.static_range(2):
        # First the tiles that are seen in part, from the left of the list, then the others, from its right.
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
            raised = tl.maximum(greatest, tl.max(score, 1))
            # A row that has seen nothing yet stays at minus infinity, whose difference to itself is no number.
            origin = tl.where(raised == float("-inf"), 0.0, raised)
            weight = tl.exp2(score - origin[:, None])
            shrink = tl.exp2(greatest - origin)
            total = total * shrink + tl.sum(weight, 1)
            values_here = load_rows(
                value_of_head + far_key * value_stride, value_stride, key_length, PIECE, WIDTH, PADDED, whole, UPCAST
            )
            gathered = gathered * shrink[:, None]
            gathered = tl.dot(weight.to(values_here.dtype), values_here, gathered, input_precision=PRECISION)
            greatest = raised

    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    store_rows(
        output + ((split * queries + far_start) * HEADS + head) * WIDTH,
        HEADS * WIDTH,
        length,
        gathered / total[:, None],
        OWN,
        WIDTH,
        PADDED,
    )
    found = tl.where(empty, float("-inf"), (greatest + tl.log2(total)) * LN_2)
    place = (split * HEADS + head).to(tl.int64) * queries + start + rows
    tl.store(log_sum_exp + place, found, mask=rows < length)


@triton.jit(do_not_specialize=["queries", "splits"])
def join_kernel(
    part,
    part_log_sum_exp,
    output,
    log_sum_exp,
    queries,
    splits,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Join what the splits found, always in the same order. Grid: rows of queries, heads."""
    start = tl.program_id(0) * ROWS
    head = tl.program_id(1)
    rows = start + tl.arange(0, ROWS)
    inside = rows < queries
    greatest = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(splits):
        place = (split * HEADS + head).to(tl.int64) * queries + rows
        greatest = tl.maximum(greatest, tl.load(part_log_sum_exp + place, mask=inside, other=float("-inf")))
    origin = tl.where(greatest == float("-inf"), 0.0, greatest)
    total = tl.zeros([ROWS], tl.float32)
    gathered = tl.zeros([ROWS, PADDED], tl.float32)
    far = (start.to(tl.int64) * HEADS + head) * WIDTH
    part_here = part + far
    for split in range(splits):
        place = (split * HEADS + head).to(tl.int64) * queries + rows
        found = tl.load(part_log_sum_exp + place, mask=inside, other=float("-inf"))
        weight = tl.exp2((found - origin) * LOG2_E)
        total += weight
        rows_here = load_rows(part_here, HEADS * WIDTH, queries - start, ROWS, WIDTH, PADDED, False, False)
        gathered += weight[:, None] * rows_here
        part_here += tl.cast(queries, tl.int64) * HEADS * WIDTH
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    store_rows(
        output + far,
        HEADS * WIDTH,
        queries - start,
        gathered / total[:, None],
        ROWS,
        WIDTH,
        PADDED,
    )
    tl.store(
        log_sum_exp + head.to(tl.int64) * queries + rows,
        tl.where(empty, float("-inf"), origin + tl.log2(total) * LN_2),
        mask=inside,
    )
