"""How each kernel is built: warps and pipeline stages by head size, found with the compile gate and never by length."""

from __future__ import annotations

from typing import NamedTuple

HEAD_SIZES = (32, 64, 72, 128, 256)
"""Head sizes that the compile gate builds; every other size up to 256 runs as the next power of two."""


class KernelConfig(NamedTuple):
    """How a kernel is built.

    `warps` of a program, `stages` of its pipelined loop, tokens of a tile that are its `outer_tile`, and tokens that it takes
    of a tile that it goes through in one `inner_tile`.
    """

    warps: int
    stages: int
    outer_tile: int
    inner_tile: int


KERNEL_CONFIGS = {
    "forward": {64: KernelConfig(4, 3, 64, 64), 128: KernelConfig(4, 3, 64, 64), 256: KernelConfig(8, 2, 64, 32)},
    "query_gradient": {
        64: KernelConfig(4, 2, 64, 64),
        128: KernelConfig(8, 2, 64, 64),
        256: KernelConfig(8, 2, 64, 32),
    },
    "key_gradient": {64: KernelConfig(4, 2, 64, 32), 128: KernelConfig(8, 2, 64, 32), 256: KernelConfig(8, 2, 64, 16)},
}


def padded_size(head_size: int) -> int:
    """Return the columns that a tile holds for a head size: the next power of two, at least 16."""
    return max(16, 1 << (head_size - 1).bit_length())


def kernel_config(kernel: str, head_size: int, element_bytes: int, select: int, tiles: tuple[int, int]) -> KernelConfig:
    """Return how a kernel is built for a head size, the bytes of an element, its way of selection, and tile sizes.

    `tiles`: tokens of a query tile and of a key tile.
    """
    warps, stages, outer_tile, inner_tile = KERNEL_CONFIGS[kernel][max(64, padded_size(head_size))]
    if select == 2:
        # Every pair of tokens looks its block up, which takes more registers than four warps have.
        warps = 8
        inner_tile = 16 if kernel == "key_gradient" and padded_size(head_size) >= 128 else 32
    if element_bytes == 4:
        # Three products of shorter numbers for one of float32: everything is held twice over.
        stages = 1
        outer_tile, inner_tile = {64: (64, 32), 128: (32, 32), 256: (16, 16)}[max(64, padded_size(head_size))]
    owned_tile, looped_tile = (tiles[1], tiles[0]) if kernel == "key_gradient" else tiles
    return KernelConfig(warps, stages, min(outer_tile, owned_tile), min(inner_tile, looped_tile))
