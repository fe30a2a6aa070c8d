"""Attention masks as interval levels: each query has bounds and each key a level, in one to three channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.checks import expect
from ..plan.attention_plan import HIDDEN
from ..plan.blocks import Blocks


class IntervalLevels(NamedTuple):
    """A mask: a query sees the keys with low <= level <= high in all P channels.

    Attributes:
        low: int32 [P, Tq], each query's lower bounds.
        high: int32 [P, Tq], each query's upper bounds.
        level: int32 [P, Tk], each key's levels.
    """

    low: torch.Tensor
    high: torch.Tensor
    level: torch.Tensor


def causal(length: int, *, window: int | None = None, device: torch.device | str = "cpu") -> IntervalLevels:
    """Return a causal mask; with `window` a token sees at most that many tokens, itself included."""
    expect(window is None or window >= 1, "window", window, "1 or more")
    position = torch.arange(length, dtype=torch.int32, device=device)
    low = torch.zeros_like(position) if window is None else position - (window - 1)
    return IntervalLevels(low[None], position[None], position[None])


def sliding_window(length: int, before: int, behind: int, *, device: torch.device | str = "cpu") -> IntervalLevels:
    """Return the mask where each token sees itself, `before` tokens before it and `behind` tokens behind it."""
    expect(before >= 0 and behind >= 0, "before, behind", (before, behind), "0 or more")
    position = torch.arange(length, dtype=torch.int32, device=device)
    return IntervalLevels((position - before)[None], (position + behind)[None], position[None])


def coupled(context: int, slots: int, *, device: torch.device | str = "cpu") -> IntervalLevels:
    """Return the mask of a causal context followed by action slots, which see the context and each other.

    The context does not see the slots. This is the mask of CogVLA's coupled attention (CAtten; arXiv
    2508.21046, section 3).
    """
    level = torch.arange(context + slots, dtype=torch.int32, device=device).clamp(max=context)
    return IntervalLevels(torch.zeros_like(level)[None], level[None], level[None])


def full_attention(queries: int, keys: int, *, device: torch.device | str = "cpu") -> IntervalLevels:
    """Return the mask where every query sees every key."""
    seen = torch.zeros(1, queries, dtype=torch.int32, device=device)
    return IntervalLevels(seen, seen, torch.zeros(1, keys, dtype=torch.int32, device=device))


def neighbourhood(
    grid: Sequence[int],
    window: Sequence[int],
    *,
    causal_axes: Sequence[bool] = (),
    device: torch.device | str = "cpu",
) -> IntervalLevels:
    """Return the mask of neighbourhood attention on a grid (NATTEN, arXiv 2504.16922).

    Args:
        grid: sizes of 1 to 3 axes; the last axis varies fastest.
        window: size of the box that a token sees along each axis; at a border the box is shifted inside.
        causal_axes: whether the box ends at the token along each axis; such a box is cut off at the border.
        device: device of the levels.

    Raises:
        ValueError: the grid has no 1 to 3 axes, or the window or the causal axes do not match it.
    """
    expect(1 <= len(grid) <= 3, "grid", tuple(grid), "1 to 3 sizes")
    fits = len(window) == len(grid) and all(
        1 <= window_size <= size for window_size, size in zip(window, grid, strict=True)
    )
    expect(fits, "window", tuple(window), f"{len(grid)} sizes, at least 1 and at most {tuple(grid)}")
    causal_axes = tuple(causal_axes) or (False,) * len(grid)
    expect(len(causal_axes) == len(grid), "causal_axes", causal_axes, f"{len(grid)} booleans")
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.int32, device=device) for size in grid), indexing="ij")
    level = torch.stack([axis.flatten() for axis in axes])
    bounds = []
    for position, size, window_size, only_before in zip(level, grid, window, causal_axes, strict=True):
        if only_before:
            bounds.append((position - (window_size - 1), position))
        else:
            low = (position - window_size // 2).clamp(0, size - window_size)
            bounds.append((low, low + (window_size - 1)))
    return IntervalLevels(torch.stack([low for low, _ in bounds]), torch.stack([high for _, high in bounds]), level)


def hide_keys(levels: IntervalLevels, hidden: torch.Tensor) -> IntervalLevels:
    """Return the levels with keys that no query sees, such as padding or pruned tokens: `hidden` boolean [Tk]."""
    return levels._replace(level=levels.level.masked_fill(hidden, HIDDEN))


def select_tokens(levels: IntervalLevels, queries: torch.Tensor, keys: torch.Tensor) -> IntervalLevels:
    """Return the levels of a subset, or of a permutation, of the queries and keys, given by their indices."""
    return IntervalLevels(levels.low[:, queries], levels.high[:, queries], levels.level[:, keys])


def concatenate_segments(parts: Sequence[IntervalLevels]) -> IntervalLevels:
    """Concatenate the levels of several segments, with the largest number of channels among them."""
    channels = max(part.level.shape[0] for part in parts)

    def add_channels(values):
        return torch.cat([values, values.new_zeros(channels - values.shape[0], values.shape[1])])

    return IntervalLevels(*(torch.cat([add_channels(part[which]) for part in parts], 1) for which in range(3)))


def block_levels(levels: IntervalLevels, blocks: Blocks) -> IntervalLevels:
    """Return the levels of pooled keys: a query sees a pooled key where it sees every token of its block.

    Args:
        levels: the tokens' levels, with one channel.
        blocks: the keys' n blocks; blocks without tokens are hidden.

    Returns:
        The levels of n keys, with two channels.

    Raises:
        ValueError: the levels have more than one channel.
    """
    expect(levels.level.shape[0] == 1, "levels", f"{levels.level.shape[0]} channels", "1")
    level = levels.level[0]
    starts, lengths = blocks.tiles[:, 0].long(), blocks.tiles[:, 1].long()
    block_of_token = torch.searchsorted(
        torch.where(lengths > 0, starts + lengths, HIDDEN), _positions(level), right=True
    )
    block_of_token = block_of_token.clamp(max=len(starts) - 1)
    least = torch.full_like(blocks.tiles[:, 0], HIDDEN).scatter_reduce(0, block_of_token, level.int(), "amin")
    greatest = torch.full_like(blocks.tiles[:, 0], -HIDDEN).scatter_reduce(0, block_of_token, level.int(), "amax")
    used = (lengths > 0) & (blocks.tiles[:, 2] >= 0)
    least, greatest = (part.masked_fill(~used, HIDDEN) for part in (least, greatest))
    low = torch.cat([levels.low, torch.full_like(levels.low, -HIDDEN)])
    high = torch.cat([torch.full_like(levels.high, HIDDEN - 1), levels.high])
    return IntervalLevels(low, high, torch.stack([least, greatest]))


def _positions(level: torch.Tensor) -> torch.Tensor:
    return torch.arange(level.shape[0], device=level.device)
