"""The build of each kernel: warps, pipeline stages and tiles by head size, found with the compile gate.

Nothing depends on the sequence length, so that a new length never compiles a kernel again.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD_SIZES = (32, 64, 72, 128, 256)
"""Head sizes that the compile gate builds; every other size up to 256 runs as the next power of two."""


class KernelConfig(NamedTuple):
    """The build of a kernel.

    Attributes:
        warps: warps of a program.
        stages: stages of its pipelined loop.
        outer_tile: tokens whose results a program writes.
        inner_tile: tokens that it reads in one step of its loop.
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
    """Return the columns of a tile for a head size: the next power of two, at least 16."""
    return max(16, 1 << (head_size - 1).bit_length())


def kernel_config(kernel: str, head_size: int, element_bytes: int, select: int, tiles: tuple[int, int]) -> KernelConfig:
    """Return the build of a kernel.

    Args:
        kernel: "forward", "query_gradient" or "key_gradient".
        head_size: the head size D.
        element_bytes: bytes of an element.
        select: 0 without a selection, 1 if all keys of a tile belong to one block, 2 otherwise.
        tiles: tokens of a query tile and of a key tile.
    """
    warps, stages, outer_tile, inner_tile = KERNEL_CONFIGS[kernel][max(64, padded_size(head_size))]
    if select == 2:
        # Each pair of tokens looks its block up, which takes more registers than four warps have.
        warps = 8
        inner_tile = 16 if kernel == "key_gradient" and padded_size(head_size) >= 128 else 32
    if element_bytes == 4:
        # tf32x3 computes three products for one of float32 and holds each operand twice.
        stages = 1
        outer_tile, inner_tile = {64: (64, 32), 128: (32, 32), 256: (16, 16)}[max(64, padded_size(head_size))]
    owned_tile, looped_tile = (tiles[1], tiles[0]) if kernel == "key_gradient" else tiles
    return KernelConfig(warps, stages, min(outer_tile, owned_tile), min(inner_tile, looped_tile))
