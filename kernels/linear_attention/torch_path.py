"""Linear attention in plain torch, chunk by chunk: the steps of the kernels, for processors without Triton.

Every step takes and returns what its namesake in `kernel` does, so that the operator composes either. It computes in
float32, or float64 if that is what it is given.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch.nn import functional

CHUNK = 64


class Plan(NamedTuple):
    """Where the chunks lie: `start` and `stop` of each, `first` chunk of each segment and one more for the end.

    `size`: how many tokens a chunk can hold.
    """

    start: torch.Tensor
    stop: torch.Tensor
    first: list[int]
    size: int


def plan(boundaries: torch.Tensor, tokens: int) -> Plan:
    """Cut segments into chunks. Raises ValueError for boundaries that do not ascend from 0 to at most `tokens`."""
    boundaries = boundaries.long()
    lengths = boundaries.diff()
    if boundaries[0] != 0 or boundaries[-1] > tokens or (lengths < 0).any():
        raise ValueError(f"boundaries: got {boundaries.tolist()}, expected them to ascend from 0 to at most {tokens}")
    # Where all segments are short, such as one token of each of many robots, larger chunks would be empty work.
    size = min(CHUNK, max([1, *lengths.tolist()]))
    counts = (lengths + size - 1) // size
    first = functional.pad(counts.cumsum(0), (1, 0))
    inside = torch.arange(int(first[-1]), device=first.device) - first[:-1].repeat_interleave(counts)
    start = boundaries[:-1].repeat_interleave(counts) + size * inside
    stop = torch.minimum(start + size, boundaries[1:].repeat_interleave(counts))
    return Plan(start, stop, first.tolist(), size)


def operand_dtype(query: torch.Tensor) -> torch.dtype:
    """Return what products of such inputs are formed in."""
    return torch.promote_types(query.dtype, torch.float32)


def local_states(
    left: torch.Tensor, right: torch.Tensor, log_decay: torch.Tensor, plan: Plan, *, scale: float, reverse: bool
) -> torch.Tensor:
    """Return what each chunk adds to the state, [chunks, heads, d, e], for left [S, heads, d] and right [S, heads, e].

    The state behind the chunk, and with `reverse` the gradient before it.
    """
    weight = scale * _fade(_reach(plan, towards_end=not reverse), log_decay, left)
    left, right = (_chunked(part, plan) for part in (left, right))
    return torch.einsum("cshd,cshe->chde", left * weight[..., None], right)


def scan(
    local: torch.Tensor,
    initial: torch.Tensor,
    log_decay: torch.Tensor,
    plan: Plan,
    *,
    dtype: torch.dtype,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry a state [segments, heads, d, e] over each segment's chunks.

    Returns it in front of each chunk, [chunks, heads, d, e] of `dtype`, and behind all of them.
    """
    fade = _fade(plan.stop - plan.start, log_decay, local)[..., None, None]
    carried, final = torch.empty_like(local, dtype=dtype), initial.new_empty(initial.shape)
    for segment, (begin, end) in enumerate(itertools.pairwise(plan.first)):
        state = initial[segment].to(local.dtype)
        for chunk in reversed(range(begin, end)) if reverse else range(begin, end):
            carried[chunk] = state
            state = torch.addcmul(local[chunk], state, fade[chunk])
        final[segment] = state
    return carried, final


def outputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    carried: torch.Tensor,
    log_decay: torch.Tensor,
    plan: Plan,
    *,
    scale: float,
    reverse: bool,
) -> torch.Tensor:
    """Read with queries from their own chunk and from the carried state; [S, heads, e], zero outside all segments.

    With `reverse` a token sees itself and what follows, and the state is one that came from behind, scale included.
    """
    place = torch.arange(plan.size, device=query.device)
    distance = place[None, :] - place[:, None] if reverse else place[:, None] - place[None, :]
    seen = (distance >= 0)[..., None]
    near = torch.where(seen, scale * _fade(distance.clamp(min=0), log_decay, query), 0.0).permute(2, 0, 1)
    far = _fade(_reach(plan, towards_end=reverse), log_decay, query) * (1.0 if reverse else scale)
    dtype, tokens = value.dtype, len(value)
    query, key, value = (_chunked(part, plan) for part in (query, key, value))
    scores = torch.einsum("cihd,cjhd->chij", query, key) * near
    result = torch.einsum("chij,cjhe->cihe", scores, value)
    result += torch.einsum("cihd,chde->cihe", query * far[..., None], carried)
    output = result.new_zeros(tokens, *result.shape[2:], dtype=dtype)
    index = plan.start[:, None] + place
    valid = index < plan.stop[:, None]
    output[index[valid]] = result[valid].to(dtype)
    return output


def _chunked(part: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return tokens [S, heads, width] as [chunks, size, heads, width], zero where a chunk is not full."""
    index = plan.start[:, None] + torch.arange(plan.size, device=part.device)
    valid = index < plan.stop[:, None]
    chunks = part[torch.where(valid, index, 0)].to(operand_dtype(part))
    return chunks.masked_fill_(~valid[..., None, None], 0.0)


def _reach(plan: Plan, *, towards_end: bool) -> torch.Tensor:
    """Return through how many tokens something fades, [chunks, size]: to the end of its chunk, or from its start."""
    place = torch.arange(plan.size, device=plan.start.device)
    if towards_end:
        return ((plan.stop - plan.start)[:, None] - 1 - place).clamp(min=0)
    return (place + 1).expand(len(plan.start), -1)


def _fade(tokens: torch.Tensor, log_decay: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what is left after so many tokens, [..., heads]."""
    dtype = operand_dtype(like)
    return torch.exp(tokens[..., None].to(dtype) * log_decay.to(dtype))
