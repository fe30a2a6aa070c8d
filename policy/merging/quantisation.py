"""A merged change in a few bits an entry: blocks of entries share a step.

A mask leaves a skill half of a merged change or more as an error; the rounding here is far below that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import InputError

BLOCK_SIZE = 64
"""Entries that share a step."""

BIT_CHOICES = (4, 8)


def quantise(delta: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the entries of a change in 4 or 8 bits, uint8 [bytes], and the blocks' steps, float16.

    An entry is a whole number of steps, from -7 to 7 or from -127 to 127; two of 4 bits share a byte.
    """
    if bits not in BIT_CHOICES:
        raise InputError("bits", got=bits, expected=" or ".join(map(str, BIT_CHOICES)), fix="8 is usual.")
    max_level = 2 ** (bits - 1) - 1
    flat = delta.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    # Rounded up to what float16 can say, so that the largest entry still fits; too small a step is none.
    steps = (blocks.abs().amax(1) / max_level * (1 + 2**-10)).half()
    whole = torch.where(steps[:, None] > 0, (blocks / steps[:, None].float()).round(), 0.0).clamp(-max_level, max_level)
    entries = (whole.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).flatten()
    if bits == 4:
        entries = entries.view(-1, 2)
        entries = (entries[:, 0] << 4) | entries[:, 1]
    return entries, steps


def dequantise(entries: torch.Tensor, steps: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    """Return the change of a shape, float32, from what `quantise` gave.

    Raises InputError when they do not belong together.
    """
    elements = torch.Size(shape).numel()
    blocks = -(-elements // BLOCK_SIZE)
    if entries.shape != (blocks * BLOCK_SIZE * bits // 8,) or steps.shape != (blocks,) or entries.dtype != torch.uint8:
        raise InputError(
            "merged change",
            got=f"{entries.dtype} {tuple(entries.shape)} with {tuple(steps.shape)} steps",
            expected=f"uint8 {(blocks * BLOCK_SIZE * bits // 8,)} with {(blocks,)} steps, for a weight of {tuple(shape)}",
            fix="Merge again: the file was damaged or belongs to another architecture.",
        )
    whole = torch.empty(blocks * BLOCK_SIZE)
    if bits == 4:
        whole[::2], whole[1::2] = entries >> 4, entries & 15
    else:
        whole.copy_(entries)
    whole.sub_(2 ** (bits - 1)).view(blocks, BLOCK_SIZE).mul_(steps.float()[:, None])
    return whole[:elements].view(*shape)
