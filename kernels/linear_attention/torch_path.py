"""Linear attention in plain torch, chunk by chunk: the steps of the kernels, for machines without a GPU.

Each step takes and returns what its namesake in `kernel` does, so that the operator composes either. It computes in
float32, or in float64 for inputs of that dtype.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch.nn import functional

CHUNK = 64
"""Most tokens of a chunk."""


class ChunkBounds(NamedTuple):
    """The bounds of all chunks.

    Attributes:
        start: the first token of each chunk, int64 [chunks].
        stop: one past the last token of each chunk, int64 [chunks].
        first: the first chunk of each segment, and the number of chunks at the end.
        size: most tokens of a chunk.
    """

    start: torch.Tensor
    stop: torch.Tensor
    first: list[int]
    size: int


def chunk_plan(boundaries: torch.Tensor, tokens: int) -> ChunkBounds:
    """Cut segments into chunks. Raises ValueError for boundaries that do not ascend from 0 to at most `tokens`."""
    boundaries = boundaries.long()
    lengths = boundaries.diff()
    if boundaries[0] != 0 or boundaries[-1] > tokens or (lengths < 0).any():
        raise ValueError(f"boundaries: got {boundaries.tolist()}, expected them to ascend from 0 to at most {tokens}")
    # Use smaller chunks where all segments are short, such as one token of each of many robots.
    size = min(CHUNK, max([1, *lengths.tolist()]))
    counts = (lengths + size - 1) // size
    first = functional.pad(counts.cumsum(0), (1, 0))
    chunk_in_segment = torch.arange(int(first[-1]), device=first.device) - first[:-1].repeat_interleave(counts)
    start = boundaries[:-1].repeat_interleave(counts) + size * chunk_in_segment
    stop = torch.minimum(start + size, boundaries[1:].repeat_interleave(counts))
    return ChunkBounds(start, stop, first.tolist(), size)


def operand_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the dtype of products: float32, or float64 for inputs of that dtype."""
    return torch.promote_types(query.dtype, torch.float32)


def local_states(
    left: torch.Tensor,
    right: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkBounds,
    *,
    scale: float,
    reverse: bool,
) -> torch.Tensor:
    """Return what each chunk adds to the state, [chunks, heads, d, e], for left [S, heads, d] and right [S, heads, e].

    It is the state after the chunk or, with `reverse`, the state's gradient before the chunk.
    """
    weight = scale * _decay(_decay_steps(chunk_plan, towards_end=not reverse), log_decay, left)  # [chunks, size, heads]
    left, right = (_split_chunks(part, chunk_plan) for part in (left, right))  # [chunks, size, heads, width]
    return torch.einsum("cshd,cshe->chde", left * weight[..., None], right)


def scan(
    chunk_states: torch.Tensor,
    initial_state: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkBounds,
    *,
    dtype: torch.dtype,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry a state [segments, heads, d, e] over each segment's chunks.

    Returns the state before each chunk, [chunks, heads, d, e] of `dtype`, and the state after the last chunk.
    """
    decay_factor = _decay(chunk_plan.stop - chunk_plan.start, log_decay, chunk_states)[..., None, None]
    entering_states = torch.empty_like(chunk_states, dtype=dtype)
    final_state = initial_state.new_empty(initial_state.shape)
    for segment, (begin, end) in enumerate(itertools.pairwise(chunk_plan.first)):
        state = initial_state[segment].to(chunk_states.dtype)
        for chunk in reversed(range(begin, end)) if reverse else range(begin, end):
            entering_states[chunk] = state
            state = torch.addcmul(chunk_states[chunk], state, decay_factor[chunk])
        final_state[segment] = state
    return entering_states, final_state


def outputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    entering_states: torch.Tensor,
    log_decay: torch.Tensor,
    chunk_plan: ChunkBounds,
    *,
    scale: float,
    reverse: bool,
) -> torch.Tensor:
    """Attend with each query to its own chunk and to the carried state; [S, heads, e], zero outside all segments.

    With `reverse` a token sees itself and later tokens, and the state comes from later chunks, scale included.
    """
    position = torch.arange(chunk_plan.size, device=query.device)
    distance = position[None, :] - position[:, None] if reverse else position[:, None] - position[None, :]
    seen = (distance >= 0)[..., None]
    intra_chunk_decay = torch.where(seen, scale * _decay(distance.clamp(min=0), log_decay, query), 0.0)
    intra_chunk_decay = intra_chunk_decay.permute(2, 0, 1)  # [heads, size, size]
    inter_chunk = _decay(_decay_steps(chunk_plan, towards_end=reverse), log_decay, query) * (1.0 if reverse else scale)
    dtype, tokens = value.dtype, len(value)
    query, key, value = (_split_chunks(part, chunk_plan) for part in (query, key, value))
    scores = torch.einsum("cihd,cjhd->chij", query, key) * intra_chunk_decay  # [chunks, heads, size, size]
    result = torch.einsum("chij,cjhe->cihe", scores, value)  # [chunks, size, heads, e]
    result += torch.einsum("cihd,chde->cihe", query * inter_chunk[..., None], entering_states)
    output = result.new_zeros(tokens, *result.shape[2:], dtype=dtype)
    index = chunk_plan.start[:, None] + position
    valid = index < chunk_plan.stop[:, None]
    output[index[valid]] = result[valid].to(dtype)
    return output


def _split_chunks(part: torch.Tensor, chunk_plan: ChunkBounds) -> torch.Tensor:
    """Return tokens [S, heads, width] as [chunks, size, heads, width], zero where a chunk is not full."""
    index = chunk_plan.start[:, None] + torch.arange(chunk_plan.size, device=part.device)
    valid = index < chunk_plan.stop[:, None]
    chunks = part[torch.where(valid, index, 0)].to(operand_dtype(part))
    return chunks.masked_fill_(~valid[..., None, None], 0.0)


def _decay_steps(chunk_plan: ChunkBounds, *, towards_end: bool) -> torch.Tensor:
    """Return the steps that each token decays, [chunks, size]: to the end of its chunk, or from its start."""
    position = torch.arange(chunk_plan.size, device=chunk_plan.start.device)
    if towards_end:
        return ((chunk_plan.stop - chunk_plan.start)[:, None] - 1 - position).clamp(min=0)
    return (position + 1).expand(len(chunk_plan.start), -1)


def _decay(tokens: torch.Tensor, log_decay: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the decay factor exp(tokens * log_decay), [..., heads]."""
    dtype = operand_dtype(like)
    return torch.exp(tokens[..., None].to(dtype) * log_decay.to(dtype))
