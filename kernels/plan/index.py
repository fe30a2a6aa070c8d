"""Tiles of packed sequences and the lists of visible pairs of tiles, as torch operators."""

from __future__ import annotations

import torch

from ..common.dispatch import device_of, runs_in_triton
from ..common.operators import operator


def _fake_tiles(offsets, tokens, size, capacity):
    return offsets.new_empty(capacity, 3, dtype=torch.int32)


@operator("cut_tiles", fake=_fake_tiles)
def cut_tiles(offsets: torch.Tensor, tokens: int, size: int, capacity: int) -> torch.Tensor:
    """Cut segments into tiles of at most `size` tokens.

    Args:
        offsets: int32 [N + 1], where segments begin and end.
        tokens: the number of packed tokens; those behind the last segment are cut too and get segment -1.
        size: most tokens of a tile.
        capacity: the number of tiles to return; `tokens // size + N + 1` always suffice.

    Returns:
        int32 [capacity, 3]: start, length and segment; unused tiles have length 0.
    """
    if runs_in_triton(offsets):
        from .index_kernel import launch_cut

        with device_of(offsets):
            return launch_cut(offsets, offsets, offsets, tokens, size, capacity, -1, 0)[0]
    return cut_in_torch(offsets, tokens, size, capacity, -1)


def _fake_lists(
    low,
    high,
    level,
    query_offsets,
    key_offsets,
    selection_bits,
    block,
    query_tile,
    key_tile,
    query_capacity,
    key_capacity,
):
    heads = 1 if selection_bits is None else selection_bits.shape[0]

    def integers(*shape):
        return low.new_empty(shape, dtype=torch.int32)

    return (
        integers(query_capacity, 3),
        integers(key_capacity, 3),
        integers(heads, query_capacity, 2),
        integers(heads, query_capacity, key_capacity),
        integers(heads, key_capacity, 2),
        integers(heads, key_capacity, query_capacity),
    )


@operator("tile_lists", fake=_fake_lists)
def tile_lists(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    selection_bits: torch.Tensor | None,
    block: torch.Tensor | None,
    query_tile: int,
    key_tile: int,
    query_capacity: int,
    key_capacity: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the tiles of queries and keys and, for each tile, the visible tiles of the other kind.

    Args:
        low: As in `AttentionPlan`.
        high: As in `AttentionPlan`.
        level: As in `AttentionPlan`.
        query_offsets: int32 [N + 1], where the queries' segments begin and end.
        key_offsets: int32 [N + 1], where the keys' segments begin and end.
        selection_bits: As in `AttentionPlan`.
        block: As in `AttentionPlan`.
        query_tile: Queries of a tile.
        key_tile: Keys of a tile.
        query_capacity: The number of query tiles to return.
        key_capacity: The number of key tiles to return.

    Returns:
        `query_tiles`, `key_tiles`, `row_counts`, `row_lists`, `column_counts` and `column_lists` of `AttentionPlan`.
    """
    sizes, capacities = (query_tile, key_tile), (query_capacity, key_capacity)
    if runs_in_triton(low):
        from .index_kernel import launch_lists

        with device_of(low):
            return launch_lists(low, high, level, query_offsets, key_offsets, selection_bits, block, sizes, capacities)
    return lists_in_torch(low, high, level, query_offsets, key_offsets, selection_bits, block, sizes, capacities)


def lists_in_torch(
    low: torch.Tensor,
    high: torch.Tensor,
    level: torch.Tensor,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    selection_bits: torch.Tensor | None,
    block: torch.Tensor | None,
    sizes: tuple[int, int],
    capacities: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `tile_lists` in plain torch, with all pairs of tiles in memory."""
    query_tile, key_tile = sizes
    query_tiles = cut_in_torch(query_offsets, low.shape[1], query_tile, capacities[0], -1)
    key_tiles = cut_in_torch(key_offsets, level.shape[1], key_tile, capacities[1], -2)
    visible, full = _tile_visibility(low, high, level, query_tiles, key_tiles, query_tile, key_tile)
    if selection_bits is not None:
        any_selected, all_selected = _tile_selection(
            selection_bits, block, query_tiles, key_tiles, query_tile, key_tile
        )
        visible, full = visible & any_selected, full & any_selected & all_selected
    return query_tiles, key_tiles, *_compact(visible, full), *_compact(visible.mT, full.mT)


def cut_in_torch(offsets: torch.Tensor, tokens: int, size: int, capacity: int, outside: int) -> torch.Tensor:
    """Compute `cut_tiles` in plain torch; tokens behind the last segment get segment `outside`."""
    edges = torch.cat([offsets.clamp(0, tokens).long(), torch.tensor([tokens], device=offsets.device)])
    sizes = edges.diff()
    ends = ((sizes + size - 1) // size).cumsum(0)
    number = torch.arange(capacity, device=offsets.device)
    segment = torch.searchsorted(ends, number, right=True)
    used = segment < len(sizes)
    segment = segment.clamp(max=len(sizes) - 1)
    inner = (number - ends[segment]) * size + (sizes[segment] + size - 1) // size * size
    start = torch.where(used, edges[segment] + inner, 0)
    length = torch.where(used, (sizes[segment] - inner).clamp(max=size), 0)
    segment = torch.where(used & (segment < len(sizes) - 1), segment, outside)
    return torch.stack([start, length, segment], -1).int()


def _tile_values(values: torch.Tensor, tiles: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values [..., T] by tile, [..., tiles, size], and which of them exist, [tiles, size]."""
    row = torch.arange(size, device=tiles.device)
    if values.shape[-1] == 0:
        return values.new_zeros(*values.shape[:-1], len(tiles), size), row[None] < tiles[:, 1:2]
    position = (tiles[:, :1] + row).clamp(max=values.shape[-1] - 1).long()  # [tiles, size]
    return values[..., position], row[None] < tiles[:, 1:2]


def _tile_visibility(
    low, high, level, query_tiles, key_tiles, query_tile, key_tile
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [1, query tiles, key tiles]: whether any query may see any key, and whether all queries see all keys."""
    least, greatest = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max

    def extremes(values, tiles, size):
        rows, is_present = _tile_values(values, tiles, size)
        return rows.masked_fill(~is_present, greatest).amin(-1), rows.masked_fill(~is_present, least).amax(-1)

    low_least, low_greatest = (part[:, :, None] for part in extremes(low, query_tiles, query_tile))
    high_least, high_greatest = (part[:, :, None] for part in extremes(high, query_tiles, query_tile))
    level_least, level_greatest = (part[:, None] for part in extremes(level, key_tiles, key_tile))
    visible = ((level_greatest >= low_least) & (level_least <= high_greatest)).all(0)
    full = ((level_least >= low_greatest) & (level_greatest <= high_least)).all(0)
    visible &= query_tiles[:, None, 2] == key_tiles[None, :, 2]
    visible &= (query_tiles[:, None, 1] > 0) & (key_tiles[None, :, 1] > 0)
    return visible[None], (full & visible & (key_tiles[None, :, 1] == key_tile))[None]


def _tile_selection(
    selection_bits, block, query_tiles, key_tiles, query_tile, key_tile
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [H, query tiles, key tiles]: whether any query selected a key's block, and whether all selected all."""
    shift = torch.arange(32, device=selection_bits.device, dtype=torch.int32)
    chosen = ((selection_bits[..., None] >> shift) & 1).flatten(2).bool().movedim(2, 0)  # [32 W, H, Tq]
    rows, is_present = _tile_values(chosen, query_tiles, query_tile)
    some, every = (rows & is_present).any(-1), (rows | ~is_present).all(-1)  # [32 W, H, query tiles]
    block_of_key, is_present = _tile_values(block, key_tiles, key_tile)  # [key tiles, size]
    blocks = torch.arange(chosen.shape[0], device=selection_bits.device)
    key_blocks = ((block_of_key[..., None] == blocks) & is_present[..., None]).any(1).float()  # [key tiles, 32 W]
    always_visible = ((block_of_key < 0) & is_present).any(1)
    selected = torch.einsum("bhq,kb->hqk", some.float(), key_blocks) > 0
    return selected | always_visible, torch.einsum("bhq,kb->hqk", (~every).float(), key_blocks) == 0


def _compact(visible: torch.Tensor, full: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return counts and lists along the last axis: partially visible tiles from the left, full ones from the right."""
    partial, others = visible & ~full, visible.shape[-1]
    position = torch.where(partial, partial.cumsum(-1) - 1, others - full.cumsum(-1))
    position = torch.where(visible, position, others)
    lists = torch.zeros(*visible.shape[:-1], others + 1, dtype=torch.int32, device=visible.device)
    indices = torch.arange(others, dtype=torch.int32, device=visible.device).expand(visible.shape)
    lists.scatter_(-1, position, indices)
    counts = torch.stack([partial.sum(-1), full.sum(-1)], -1).int()
    return counts.contiguous(), lists[..., :others].contiguous()
