"""gather_norm_film in Triton: one pass forward, one pass backward, each token read once.

The backward pass runs over all source tokens, not over the kept ones: every gradient is written once, those of pruned
tokens as zeros, and no atomic addition is needed. The sums for weight, scale and shift are formed in each program, then
over programs in their order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..common.launch import ceil_divide, contiguous_rows, launcher, next_power_of_2

TILE = 2048
"""Numbers in a tile of rows; a row that is wider is one tile."""
INVERT_BLOCK = 128
"""Indices that one program of `invert_kernel` inverts."""
PROGRAMS = 1024
"""Most programs of the backward pass: few enough that their partial sums cost little memory."""


@triton.jit(do_not_specialize=["sources", "rows"])
def forward_kernel(
    tokens,
    indices,
    weight,
    scale,
    shift,
    kept,
    result,
    inverse_rms,
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
    """Gather, normalize and modulate ROWS rows of one sample. Grid: tiles of rows, samples."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside, within = row < rows, column < WIDTH
    source_index, valid = row.to(tl.int64), inside  # [ROWS]
    if GATHERED:
        source_index = tl.load(indices + sample * rows + row, mask=inside, other=-1).to(tl.int64)
        valid = (source_index >= 0) & (source_index < sources)
    token = tl.load(
        tokens + sample * tokens_sample + source_index[:, None] * tokens_row + column[None, :],
        mask=valid[:, None] & within[None, :],
        other=0.0,
    )  # [ROWS, COLUMNS]
    cell = (sample * rows + row)[:, None] * WIDTH + column[None, :]
    mask = inside[:, None] & within[None, :]
    if GATHERED:
        tl.store(kept + cell, token, mask=mask)
    tokens_float = token.to(tl.float32)
    norm = tl.rsqrt(tl.sum(tokens_float * tokens_float, 1) / WIDTH + epsilon)  # [ROWS]
    tl.store(inverse_rms + sample * rows + row, norm, mask=inside)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)  # [COLUMNS]
    if MODULATED:
        cell_of_sample = sample * WIDTH + column
        gain *= 1.0 + tl.load(scale + cell_of_sample, mask=within, other=0.0).to(tl.float32)
        offset = tl.load(shift + cell_of_sample, mask=within, other=0.0).to(tl.float32)
        output = tl.where(valid[:, None], tokens_float * norm[:, None] * gain[None, :] + offset[None, :], 0.0)
    else:
        output = tokens_float * norm[:, None] * gain[None, :]
    tl.store(result + cell, output.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["sources", "rows"])
def invert_kernel(indices, row_of_source, sources, rows, BLOCK: tl.constexpr):
    """Write for each gathered source token its row in the result. Grid: blocks of rows, samples."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source_index = tl.load(indices + sample * rows + row, mask=row < rows, other=-1).to(tl.int64)
    tl.store(row_of_source + sample * sources + source_index, row, mask=(source_index >= 0) & (source_index < sources))


@triton.jit(do_not_specialize=["sources", "rows", "steps"])
def backward_kernel(
    source,
    row_of_source,
    weight,
    scale,
    inverse_rms,
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
    """Write the gradients of consecutive tokens of one sample, and their sums for the weights. Grid: parts, samples."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    within = column < WIDTH
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    if MODULATED:
        gain *= 1.0 + tl.load(scale + sample * WIDTH + column, mask=within, other=0.0).to(tl.float32)
    normed_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    plain_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        source_index = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = source_index < sources
        row = source_index
        if GATHERED:
            row = tl.load(row_of_source + sample * sources + source_index, mask=inside, other=-1)
        valid = inside & (row >= 0)
        mask = valid[:, None] & within[None, :]
        row = row.to(tl.int64)
        token = tl.load(
            source + sample * source_sample + row[:, None] * source_row + column[None, :], mask=mask, other=0.0
        )
        cell = (sample * rows + row)[:, None] * WIDTH + column[None, :]
        gradient_rows = tl.load(gradient + cell, mask=mask, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
        norm = tl.load(inverse_rms + sample * rows + row, mask=valid, other=0.0)  # [ROWS]
        normed = token.to(tl.float32) * norm[:, None]  # [ROWS, COLUMNS]
        normed_sum += gradient_rows * normed
        plain_sum += gradient_rows
        gradient_rows = gradient_rows * gain[None, :]
        projection = tl.sum(gradient_rows * normed, 1) / WIDTH  # [ROWS]
        result = norm[:, None] * (gradient_rows - normed * projection[:, None])
        if RESIDUAL:
            result += tl.load(kept_gradient + cell, mask=mask, other=0.0).to(tl.float32)
        cell = (sample * sources + source_index)[:, None] * WIDTH + column[None, :]
        tl.store(
            tokens_gradient + cell,
            result.to(tokens_gradient.dtype.element_ty),
            mask=inside[:, None] & within[None, :],
        )
    written = sums + (sample * tl.num_programs(0) + part) * 2 * WIDTH + column
    tl.store(written, tl.sum(normed_sum, 0), mask=within)
    tl.store(written + WIDTH, tl.sum(plain_sum, 0), mask=within)


def forward(
    tokens: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the kept tokens, the normalized and modulated tokens (both [B, n, D]), and the inverse RMS [B, n].

    The kept tokens are empty without `indices`.
    """
    tokens = contiguous_rows(tokens)
    batch, sources, width = tokens.shape
    rows = sources if indices is None else indices.shape[1]
    kept = tokens.new_empty(0) if indices is None else tokens.new_empty(batch, rows, width)
    result = tokens.new_empty(batch, rows, width)
    inverse_rms = tokens.new_empty(batch, rows, dtype=torch.float32)
    constants, options = tile_config(width)
    if batch and rows:
        launcher(forward_kernel, (ceil_divide(rows, constants["ROWS"]), batch))(
            tokens,
            None if indices is None else indices.contiguous(),
            weight.contiguous(),
            None if scale is None else scale.contiguous(),
            None if shift is None else shift.contiguous(),
            None if indices is None else kept,
            result,
            inverse_rms,
            sources,
            rows,
            epsilon,
            *tokens.stride()[:2],
            WIDTH=width,
            GATHERED=indices is not None,
            MODULATED=scale is not None,
            **constants,
            **options,
        )
    return kept, result, inverse_rms


def backward(
    source: torch.Tensor,
    inverse_rms: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept_gradient: torch.Tensor | None,
    gradient: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the tokens [B, sources, D] and two sums over each sample's tokens, [B, 2, D].

    The sums are of gradient * normalized token, and of the gradient: weight, scale and shift need no more.
    `source`: the kept tokens, or all tokens without `indices`; `gradient`: of the normalized and modulated tokens.
    """
    source = contiguous_rows(source)
    batch, rows, width = source.shape
    tokens_gradient = source.new_empty(batch, sources, width)
    constants, options = tile_config(width)
    tiles = ceil_divide(sources, constants["ROWS"])
    steps = ceil_divide(tiles * max(batch, 1), PROGRAMS)
    parts = ceil_divide(tiles, max(steps, 1))
    sums = source.new_empty(batch, parts, 2, width, dtype=torch.float32)
    row_of_source = None
    if indices is not None:
        row_of_source = indices.new_full((batch, sources), -1, dtype=torch.int32)
        if batch and rows:
            launcher(invert_kernel, (ceil_divide(rows, INVERT_BLOCK), batch))(
                indices.contiguous(), row_of_source, sources, rows, BLOCK=INVERT_BLOCK
            )
    if batch and parts:
        launcher(backward_kernel, (parts, batch))(
            source,
            row_of_source,
            weight.contiguous(),
            None if scale is None else scale.contiguous(),
            inverse_rms,
            None if kept_gradient is None else kept_gradient.contiguous(),
            gradient.contiguous(),
            tokens_gradient,
            sums,
            sources,
            rows,
            steps,
            *source.stride()[:2],
            WIDTH=width,
            GATHERED=indices is not None,
            MODULATED=scale is not None,
            RESIDUAL=kept_gradient is not None,
            **constants,
            **options,
        )
    return tokens_gradient, sums.sum(1)


def tile_config(width: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the tile's constants for tokens of a width, and the compiler's options."""
    columns = next_power_of_2(width)
    # 16 numbers per thread: with more, the backward pass fills the registers and too few programs run at once.
    warps = max(4, columns // 512)
    return {"ROWS": max(1, TILE // columns), "COLUMNS": columns}, {"num_warps": warps}
