"""Linear attention in Triton, chunk-parallel (Lightning Attention-2, Qin et al., 2024, section 3).

Three steps serve the forward pass and, with reversed time, the backward pass:

1. `local_states`: what each chunk adds to the state, all chunks in parallel.
2. `scan`: the state before each chunk, sequentially along a segment; this is cheap.
3. `outputs`: each chunk attends to itself and to the state before it, all chunks in parallel.

A chunk never crosses the border of a segment. Only the device knows how many chunks there are, so that the host does
not wait: the table of chunks has room for the largest possible number, and unused rows stay empty. Matrix products use
bfloat16 where the inputs do, because exact float32 products leave the tensor cores idle. States are kept in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..common.launch import ceil_divide, contiguous_rows, launcher, next_power_of_2

CHUNK = 64
"""Tokens of a chunk."""
SCAN_BLOCK = 512
"""Numbers of a state that one program of the scan carries."""
PLAN_BLOCK = 128
"""Segments, or chunks, that the plan handles at once."""


class TileConfig(NamedTuple):
    """Tiles of one operand dtype: the largest tile sizes, the compiler's options, the kernels' constants."""

    state_rows: int
    state_columns: int
    key_tile: int
    value_tile: int
    options: dict[str, int]
    constants: dict[str, Any]


# An exact float32 product takes three tensor-core products and more registers, so its tiles are smaller.
TILE_CONFIGS = {
    torch.bfloat16: TileConfig(
        64, 128, 64, 128, {"num_warps": 4, "num_stages": 2}, {"OPERAND": tl.bfloat16, "PRECISION": "tf32x3"}
    ),
    torch.float32: TileConfig(
        64, 64, 32, 32, {"num_warps": 4, "num_stages": 2}, {"OPERAND": tl.float32, "PRECISION": "tf32x3"}
    ),
}
# The interpreter supports neither bfloat16 products nor tf32x3.
INTERPRETER_CONFIG = TILE_CONFIGS[torch.float32]._replace(constants={"OPERAND": tl.float32, "PRECISION": "ieee"})


class ChunkTable(NamedTuple):
    """The table of chunks int32 [capacity, 3] (segment or -1, start, stop), and each segment's first chunk."""

    chunks: torch.Tensor
    first: torch.Tensor


@triton.jit(do_not_specialize=["tokens", "capacity", "segments"])
def plan_kernel(boundaries, chunks, first, tokens, capacity, segments, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """List the chunks of one segment; the last program lists the tokens behind all segments and clears unused rows."""
    segment = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for base in range(0, segment, BLOCK):
        other = base + lanes
        inside = other < segment
        length = tl.load(boundaries + other + 1, mask=inside, other=0) - tl.load(boundaries + other, inside, other=0)
        before += ((length + CHUNK - 1) // CHUNK).to(tl.int32)
    begin = tl.sum(before, 0)
    tl.store(first + segment, begin)
    start = tl.load(boundaries + segment).to(tl.int32)
    stop = tl.load(boundaries + segment + 1, mask=segment < segments, other=0).to(tl.int32)
    owner_segment, rows = segment, (stop - start + CHUNK - 1) // CHUNK
    if segment == segments:
        owner_segment, stop, rows = -1, tokens, capacity - begin
    for base in range(0, rows, BLOCK):
        index = base + lanes
        row = chunks + 3 * (begin + index)
        tl.store(row, owner_segment, mask=index < rows)
        tl.store(row + 1, tl.minimum(start + index * CHUNK, stop), mask=index < rows)
        tl.store(row + 2, tl.minimum(start + index * CHUNK + CHUNK, stop), mask=index < rows)


@triton.jit
def local_states_kernel(
    left,
    right,
    chunk_states,
    log_decay,
    chunks,
    scale,
    left_token,
    left_head,
    right_token,
    right_head,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    CHUNK: tl.constexpr,
    LEFT_TILE: tl.constexpr,
    RIGHT_TILE: tl.constexpr,
    REVERSE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the decayed outer products of one chunk, for one tile of one head. Grid: chunks, heads, tiles."""
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(chunks + 3 * chunk) < 0:
        return
    start, stop = tl.load(chunks + 3 * chunk + 1), tl.load(chunks + 3 * chunk + 2)
    position = tl.arange(0, CHUNK)
    valid = position < stop - start
    tiles: tl.constexpr = (RIGHT + RIGHT_TILE - 1) // RIGHT_TILE
    row = tl.program_id(2) // tiles * LEFT_TILE + tl.arange(0, LEFT_TILE)
    column = tl.program_id(2) % tiles * RIGHT_TILE + tl.arange(0, RIGHT_TILE)
    token = (start + position).to(tl.int64)[:, None]
    left_part = tl.load(
        left + token * left_token + head * left_head + row[None, :],
        mask=valid[:, None] & (row < LEFT)[None, :],
        other=0.0,
    ).to(tl.float32)  # [CHUNK, LEFT_TILE]
    right_part = tl.load(
        right + token * right_token + head * right_head + column[None, :],
        mask=valid[:, None] & (column < RIGHT)[None, :],
        other=0.0,
    ).to(OPERAND)  # [CHUNK, RIGHT_TILE]
    decay_steps = position + 1 if REVERSE else tl.maximum(stop - start - 1 - position, 0)
    decay_factor = scale * tl.exp(decay_steps * tl.load(log_decay + head))  # [CHUNK]
    decayed = (left_part * decay_factor[:, None]).to(OPERAND)
    state = tl.dot(tl.trans(decayed), right_part, input_precision=PRECISION)  # [LEFT_TILE, RIGHT_TILE]
    cell = chunk_states + (chunk * tl.num_programs(1) + head) * LEFT * RIGHT + row[:, None] * RIGHT + column[None, :]
    tl.store(cell, state, mask=(row < LEFT)[:, None] & (column < RIGHT)[None, :])


@triton.jit
def scan_kernel(
    chunk_states,
    initial_state,
    entering_states,
    final_state,
    log_decay,
    chunks,
    first,
    SIZE: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Carry BLOCK numbers of one head's state through one segment. Grid: segments, heads, blocks."""
    segment, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    cell = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < SIZE
    begin, end = tl.load(first + segment), tl.load(first + segment + 1)
    decay = tl.load(log_decay + head)
    state_offset = (segment * heads + head).to(tl.int64) * SIZE + cell
    state = tl.load(initial_state + state_offset, mask=inside, other=0.0)
    for step in tl.range(begin, end, num_stages=4):  # pyright: ignore[reportGeneralTypeIssues]  # Triton's stubs: no __next__
        chunk = begin + end - 1 - step if REVERSE else step
        length = tl.load(chunks + 3 * chunk + 2) - tl.load(chunks + 3 * chunk + 1)
        chunk_offset = (chunk.to(tl.int64) * heads + head) * SIZE + cell
        added = tl.load(chunk_states + chunk_offset, mask=inside, other=0.0)
        tl.store(entering_states + chunk_offset, state.to(entering_states.dtype.element_ty), mask=inside)
        state = state * tl.exp(length * decay) + added
    tl.store(final_state + state_offset, state, mask=inside)


@triton.jit
def outputs_kernel(
    query,
    key,
    value,
    entering_states,
    output,
    log_decay,
    chunks,
    scale,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    state_row_stride,
    state_column_stride,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    CHUNK: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    REVERSE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute one tile of a chunk's outputs; tokens outside all segments get zero. Grid: chunks, heads, tiles."""
    chunk, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    start, stop = tl.load(chunks + 3 * chunk + 1), tl.load(chunks + 3 * chunk + 2)
    if start == stop:
        return
    in_segment = tl.load(chunks + 3 * chunk) >= 0
    position = tl.arange(0, CHUNK)
    valid = position < stop - start
    seen = valid & in_segment
    column = tl.program_id(2) * VALUE_TILE + tl.arange(0, VALUE_TILE)
    token = (start + position).to(tl.int64)[:, None]
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    inter_chunk = tl.zeros([CHUNK, VALUE_TILE], tl.float32)
    for base in range(0, KEY, KEY_TILE):
        row = base + tl.arange(0, KEY_TILE)
        mask = seen[:, None] & (row < KEY)[None, :]
        query_part = tl.load(query + token * query_token + head * query_head + row[None, :], mask=mask, other=0.0).to(
            OPERAND
        )
        key_part = tl.load(key + token * key_token + head * key_head + row[None, :], mask=mask, other=0.0).to(OPERAND)
        state = tl.load(
            entering_states
            + (chunk * heads + head) * KEY * VALUE
            + row[:, None] * state_row_stride
            + column[None, :] * state_column_stride,
            mask=in_segment & (row < KEY)[:, None] & (column < VALUE)[None, :],
            other=0.0,
        ).to(OPERAND)
        scores = tl.dot(query_part, tl.trans(key_part), scores, input_precision=PRECISION)  # [CHUNK, CHUNK]
        inter_chunk = tl.dot(query_part, state, inter_chunk, input_precision=PRECISION)  # [CHUNK, VALUE_TILE]
    decay = tl.load(log_decay + head)
    distance = position[None, :] - position[:, None] if REVERSE else position[:, None] - position[None, :]
    scores = scores * tl.where(distance >= 0, scale * tl.exp(tl.maximum(distance, 0) * decay), 0.0)
    # A state that is carried backwards already contains the scale.
    if REVERSE:
        inter_chunk = inter_chunk * tl.exp(tl.maximum(stop - start - 1 - position, 0) * decay)[:, None]
    else:
        inter_chunk = inter_chunk * (scale * tl.exp((position + 1) * decay))[:, None]
    value_part = tl.load(
        value + token * value_token + head * value_head + column[None, :],
        mask=seen[:, None] & (column < VALUE)[None, :],
        other=0.0,
    ).to(OPERAND)
    result = tl.dot(scores.to(OPERAND), value_part, inter_chunk, input_precision=PRECISION)  # [CHUNK, VALUE_TILE]
    cell = output + (token * heads + head) * VALUE + column[None, :]
    tl.store(cell, result.to(output.dtype.element_ty), mask=valid[:, None] & (column < VALUE)[None, :])


def chunk_plan(boundaries: torch.Tensor, tokens: int) -> ChunkTable:
    """Cut segments into chunks without waiting for the device."""
    segments = len(boundaries) - 1
    capacity = tokens // CHUNK + segments + 1
    chunks = boundaries.new_empty(capacity, 3, dtype=torch.int32)
    first = boundaries.new_empty(segments + 1, dtype=torch.int32)
    launcher(plan_kernel, (segments + 1,))(
        boundaries.contiguous(), chunks, first, tokens, capacity, segments, CHUNK=CHUNK, BLOCK=PLAN_BLOCK
    )
    return ChunkTable(chunks, first)


def operand_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products: bfloat16 on a GPU for bfloat16 inputs, else float32.

    float16 is multiplied as float32, because a state may grow beyond the range of float16.
    """
    return torch.bfloat16 if query.dtype == torch.bfloat16 and query.is_cuda else torch.float32


def tile_config_of(query: torch.Tensor) -> TileConfig:
    """Return the tile configuration for a query's dtype and device."""
    return TILE_CONFIGS[operand_dtype(query)] if query.is_cuda else INTERPRETER_CONFIG


def local_states(
    left: torch.Tensor,
    right: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkTable,
    *,
    scale: float,
    reverse: bool,
) -> torch.Tensor:
    """Return what each chunk adds to the state, [chunks, heads, d, e], for left [S, heads, d] and right [S, heads, e].

    It is the state after the chunk or, with `reverse`, the state's gradient before the chunk.
    """
    left, right = contiguous_rows(left), contiguous_rows(right)
    heads, rows, columns = left.shape[1], left.shape[2], right.shape[2]
    chunk_states = left.new_empty(len(chunk_plan.chunks), heads, rows, columns, dtype=torch.float32)
    tile_config = tile_config_of(left)
    row_tile, column_tile = tile(rows, tile_config.state_rows), tile(columns, tile_config.state_columns)
    tiles = ceil_divide(rows, row_tile) * ceil_divide(columns, column_tile)
    launcher(local_states_kernel, (len(chunk_plan.chunks), heads, tiles))(
        left,
        right,
        chunk_states,
        log_decay.contiguous(),
        chunk_plan.chunks,
        scale,
        *left.stride()[:2],
        *right.stride()[:2],
        LEFT=rows,
        RIGHT=columns,
        CHUNK=CHUNK,
        LEFT_TILE=row_tile,
        RIGHT_TILE=column_tile,
        REVERSE=reverse,
        **tile_config.constants,
        **tile_config.options,
    )
    return chunk_states


def scan(
    chunk_states: torch.Tensor,
    initial_state: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkTable,
    *,
    dtype: torch.dtype,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry a state [segments, heads, d, e] over each segment's chunks.

    Returns the state before each chunk, [chunks, heads, d, e] of `dtype`, and the state after the last chunk.
    """
    segments, heads, *widths = initial_state.shape
    entering_states = torch.empty_like(chunk_states, dtype=dtype)
    final_state = initial_state.new_empty(initial_state.shape)
    size = widths[0] * widths[1]
    if segments > 0:
        launcher(scan_kernel, (segments, heads, ceil_divide(size, SCAN_BLOCK)))(
            chunk_states,
            initial_state.contiguous(),
            entering_states,
            final_state,
            log_decay.contiguous(),
            chunk_plan.chunks,
            chunk_plan.first,
            SIZE=size,
            REVERSE=reverse,
            BLOCK=SCAN_BLOCK,
        )
    return entering_states, final_state


def outputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    entering_states: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkTable,
    *,
    scale: float,
    reverse: bool,
) -> torch.Tensor:
    """Attend with each query to its own chunk and to the carried state; [S, heads, e], zero outside all segments.

    With `reverse` a token sees itself and later tokens, and the state comes from later chunks, scale included.
    `entering_states` may be transposed.
    """
    query, key, value = contiguous_rows(query), contiguous_rows(key), contiguous_rows(value)
    heads, rows, columns = query.shape[1], query.shape[2], value.shape[2]
    output = value.new_empty(value.shape)
    tile_config = tile_config_of(query)
    value_tile = tile(columns, tile_config.value_tile)
    launcher(outputs_kernel, (len(chunk_plan.chunks), heads, ceil_divide(columns, value_tile)))(
        query,
        key,
        value,
        entering_states,
        output,
        log_decay.contiguous(),
        chunk_plan.chunks,
        scale,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        *entering_states.stride()[2:],
        KEY=rows,
        VALUE=columns,
        CHUNK=CHUNK,
        KEY_TILE=tile(rows, tile_config.key_tile),
        VALUE_TILE=value_tile,
        REVERSE=reverse,
        **tile_config.constants,
        **tile_config.options,
    )
    return output


def tile(width: int, largest: int) -> int:
    """Return the columns of a width that one program takes: a power of two that tensor cores accept."""
    return min(largest, max(16, next_power_of_2(width)))
