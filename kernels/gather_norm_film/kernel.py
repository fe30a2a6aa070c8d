"""gather_norm_film in Triton: one pass forward, one pass backward, each token read once.

The backward pass runs over the tokens that were gathered from, not over those that were kept: so every gradient is
written once, those of pruned tokens as zeros, and nothing is added to memory. What weight, scale and shift need is
summed in each program, then over programs in their order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

TILE = 2048
"""Numbers in a tile of rows; a wider row is a tile of its own."""
INVERT_BLOCK = 128
PROGRAMS = 1024
"""Programs of the backward pass, at the most: few enough that their sums weigh little."""


@triton.jit(do_not_specialize=["sources", "rows"])
def forward_kernel(
    tokens,
    places,
    weight,
    scale,
    shift,
    kept,
    result,
    inverse,
    sources,
    rows,
    epsilon,
    tokens_sample,
    tokens_row,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATHERED: tl.constexpr,
    MODULATED: tl.constexpr,
):
    """Gather, norm and modulate some rows of one sample."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside, within = row < rows, column < WIDTH
    place, real = row.to(tl.int64), inside
    if GATHERED:
        place = tl.load(places + sample * rows + row, mask=inside, other=-1).to(tl.int64)
        real = (place >= 0) & (place < sources)
    token = tl.load(
        tokens + sample * tokens_sample + place[:, None] * tokens_row + column[None, :],
        mask=real[:, None] & within[None, :],
        other=0.0,
    )
    cell = (sample * rows + row)[:, None] * WIDTH + column[None, :]
    mask = inside[:, None] & within[None, :]
    if GATHERED:
        tl.store(kept + cell, token, mask=mask)
    wide = token.to(tl.float32)
    norm = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + epsilon)
    tl.store(inverse + sample * rows + row, norm, mask=inside)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    if MODULATED:
        own = sample * WIDTH + column
        gain *= 1.0 + tl.load(scale + own, mask=within, other=0.0).to(tl.float32)
        offset = tl.load(shift + own, mask=within, other=0.0).to(tl.float32)
        output = tl.where(real[:, None], wide * norm[:, None] * gain[None, :] + offset[None, :], 0.0)
    else:
        output = wide * norm[:, None] * gain[None, :]
    tl.store(result + cell, output.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["sources", "rows"])
def invert_kernel(places, rows_of, sources, rows, BLOCK: tl.constexpr):
    """Write at every place which row it was gathered into."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + sample * rows + row, mask=row < rows, other=-1).to(tl.int64)
    tl.store(rows_of + sample * sources + place, row, mask=(place >= 0) & (place < sources))


@triton.jit(do_not_specialize=["sources", "rows", "steps"])
def backward_kernel(
    source,
    rows_of,
    weight,
    scale,
    inverse,
    kept_gradient,
    gradient,
    tokens_gradient,
    sums,
    sources,
    rows,
    steps,
    source_sample,
    source_row,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATHERED: tl.constexpr,
    MODULATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Differentiate some consecutive tokens of one sample, and sum over them what its weights need."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    within = column < WIDTH
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    if MODULATED:
        gain *= 1.0 + tl.load(scale + sample * WIDTH + column, mask=within, other=0.0).to(tl.float32)
    normed_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    plain_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        place = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = place < sources
        row = place
        if GATHERED:
            row = tl.load(rows_of + sample * sources + place, mask=inside, other=-1)
        real = inside & (row >= 0)
        mask = real[:, None] & within[None, :]
        row = row.to(tl.int64)
        token = tl.load(
            source + sample * source_sample + row[:, None] * source_row + column[None, :], mask=mask, other=0.0
        )
        cell = (sample * rows + row)[:, None] * WIDTH + column[None, :]
        above = tl.load(gradient + cell, mask=mask, other=0.0).to(tl.float32)
        norm = tl.load(inverse + sample * rows + row, mask=real, other=0.0)
        normed = token.to(tl.float32) * norm[:, None]
        normed_sum += above * normed
        plain_sum += above
        above = above * gain[None, :]
        along = tl.sum(above * normed, 1) / WIDTH
        result = norm[:, None] * (above - normed * along[:, None])
        if RESIDUAL:
            result += tl.load(kept_gradient + cell, mask=mask, other=0.0).to(tl.float32)
        cell = (sample * sources + place)[:, None] * WIDTH + column[None, :]
        tl.store(
            tokens_gradient + cell,
            result.to(tokens_gradient.dtype.element_ty),
            mask=inside[:, None] & within[None, :],
        )
    own = sums + (sample * tl.num_programs(0) + part) * 2 * WIDTH + column
    tl.store(own, tl.sum(normed_sum, 0), mask=within)
    tl.store(own + WIDTH, tl.sum(plain_sum, 0), mask=within)


def forward(
    tokens: torch.Tensor,
    places: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the kept tokens (none without `places`), these normed and modulated, and the norms' inverse [B, n]."""
    tokens = _dense(tokens)
    batch, sources, width = tokens.shape
    rows = sources if places is None else places.shape[1]
    kept = tokens.new_empty(0) if places is None else tokens.new_empty(batch, rows, width)
    result = tokens.new_empty(batch, rows, width)
    inverse = tokens.new_empty(batch, rows, dtype=torch.float32)
    constants, options = form(width)
    if batch and rows:
        forward_kernel[(triton.cdiv(rows, constants["ROWS"]), batch)](
            tokens,
            None if places is None else places.contiguous(),
            weight.contiguous(),
            None if scale is None else scale.contiguous(),
            None if shift is None else shift.contiguous(),
            None if places is None else kept,
            result,
            inverse,
            sources,
            rows,
            epsilon,
            *tokens.stride()[:2],
            WIDTH=width,
            GATHERED=places is not None,
            MODULATED=scale is not None,
            **constants,
            **options,
        )
    return kept, result, inverse


def backward(
    source: torch.Tensor,
    inverse: torch.Tensor,
    places: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept_gradient: torch.Tensor | None,
    gradient: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the tokens [B, sources, D] and two sums over each sample's tokens, [B, 2, D].

    They are of the gradient times the normed token, and of the gradient: weight, scale and shift need no more.
    `source`: the kept tokens, or all of them without `places`; `gradient`: of what was normed and modulated.
    """
    source = _dense(source)
    batch, rows, width = source.shape
    tokens_gradient = source.new_empty(batch, sources, width)
    constants, options = form(width)
    tiles = triton.cdiv(sources, constants["ROWS"])
    steps = triton.cdiv(tiles * max(batch, 1), PROGRAMS)
    parts = triton.cdiv(tiles, max(steps, 1))
    sums = source.new_empty(batch, parts, 2, width, dtype=torch.float32)
    rows_of = None
    if places is not None:
        rows_of = places.new_full((batch, sources), -1, dtype=torch.int32)
        if batch and rows:
            invert_kernel[(triton.cdiv(rows, INVERT_BLOCK), batch)](
                places.contiguous(), rows_of, sources, rows, BLOCK=INVERT_BLOCK
            )
    if batch and parts:
        backward_kernel[(parts, batch)](
            source,
            rows_of,
            weight.contiguous(),
            None if scale is None else scale.contiguous(),
            inverse,
            None if kept_gradient is None else kept_gradient.contiguous(),
            gradient.contiguous(),
            tokens_gradient,
            sums,
            sources,
            rows,
            steps,
            *source.stride()[:2],
            WIDTH=width,
            GATHERED=places is not None,
            MODULATED=scale is not None,
            RESIDUAL=kept_gradient is not None,
            **constants,
            **options,
        )
    return tokens_gradient, sums.sum(1)


def form(width: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the tile for tokens of a width, and the compiler's options."""
    columns = triton.next_power_of_2(width)
    # Sixteen numbers a thread: with more, the backward pass fills the registers and too few programs run at once.
    warps = max(4, columns // 512)
    return {"ROWS": max(1, TILE // columns), "COLUMNS": columns}, {"num_warps": warps}


def _dense(part: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last dimension is contiguous; a slice of a sequence is left where it is."""
    return part if part.stride(-1) == 1 or part.shape[-1] == 1 else part.contiguous()
