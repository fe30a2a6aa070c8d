"""How each kernel is built: warps and pipeline stages by head size, found with the compile gate and never by length."""

from __future__ import annotations

from typing import NamedTuple

HEAD_SIZES = (32, 64, 72, 128, 256)
"""Head sizes that the compile gate builds; every other size up to 256 runs as the next power of two."""


class Build(NamedTuple):
    """How a kernel is built.

    `warps` of a program, `stages` of its pipelined loop, tokens of a tile that are its `own`, and tokens that it takes
    of a tile that it goes through in one `piece`.
    """

    warps: int
    stages: int
    own: int
    piece: int


BUILDS = {
    "forward": {64: Build(4, 3, 64, 64), 128: Build(4, 3, 64, 64), 256: Build(8, 2, 64, 32)},
    "query_gradient": {64: Build(4, 2, 64, 64), 128: Build(8, 2, 64, 64), 256: Build(8, 2, 64, 32)},
    "key_gradient": {64: Build(4, 2, 64, 32), 128: Build(8, 2, 64, 32), 256: Build(8, 2, 64, 16)},
}


def padded(width: int) -> int:
    """Return the columns that a tile holds for a head size: the next power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def build(kernel: str, width: int, element_bytes: int, select: int, tiles: tuple[int, int]) -> Build:
    """Return how a kernel is built for a head size, the bytes of an element, its way of selection, and tile sizes.

    `tiles`: tokens of a query tile and of a key tile.
    """
    warps, stages, own, piece = BUILDS[kernel][max(64, padded(width))]
    if select == 2:
        # Every pair of tokens looks its block up, which takes more registers than four warps have.
        warps = 8
        piece = 16 if kernel == "key_gradient" and padded(width) >= 128 else 32
    if element_bytes == 4:
        # Three products of shorter numbers for one of float32: everything is held twice over.
        stages = 1
        own, piece = {64: (64, 32), 128: (32, 32), 256: (16, 16)}[max(64, padded(width))]
    mine, through = (tiles[1], tiles[0]) if kernel == "key_gradient" else tiles
    return Build(warps, stages, min(own, mine), min(piece, through))
