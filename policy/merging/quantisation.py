"""Quantise a merged change to 8 or 4 bits an entry, with one step size for each block of entries.

The rounding error is far smaller than the error of a task mask, which is half of a merged change or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import InputError

BLOCK_SIZE = 64
"""Entries that share a step size."""

BIT_CHOICES = (4, 8)


def quantise(delta: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a change to integers from -7 to 7 (4 bits) or -127 to 127 (8 bits).

    Args:
        delta: The change, any shape.
        bits: 4 or 8.

    Returns:
        The integers as uint8 [bytes], where two of 4 bits share a byte, and the step sizes as float16 [blocks].

    Raises:
        InputError: `bits` is neither 4 nor 8.
    """
    if bits not in BIT_CHOICES:
        raise InputError("bits", got=bits, expected=" or ".join(map(str, BIT_CHOICES)), fix="Use 8.")
    max_level = 2 ** (bits - 1) - 1
    flat = delta.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)  # [blocks, 64]
    # A bit larger, so that the largest entry still fits after rounding to float16; a step that underflows is zero.
    steps = (blocks.abs().amax(1) / max_level * (1 + 2**-10)).half()  # [blocks]
    whole = torch.where(steps[:, None] > 0, (blocks / steps[:, None].float()).round(), 0.0).clamp(-max_level, max_level)
    entries = (whole.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).flatten()
    if bits == 4:
        entries = entries.view(-1, 2)
        entries = (entries[:, 0] << 4) | entries[:, 1]
    return entries, steps


def dequantise(entries: torch.Tensor, steps: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
    """Return the float32 change of a shape: the inverse of `quantise`, except for the rounding.

    Args:
        entries: The integers, uint8 [bytes].
        steps: The step sizes, float16 [blocks].
        shape: Shape of the change.
        bits: 4 or 8.

    Raises:
        InputError: The tensors do not fit the shape.
    """
    elements = torch.Size(shape).numel()
    blocks = -(-elements // BLOCK_SIZE)
    if entries.shape != (blocks * BLOCK_SIZE * bits // 8,) or steps.shape != (blocks,) or entries.dtype != torch.uint8:
        raise InputError(
            "merged change",
            got=f"{entries.dtype} {tuple(entries.shape)} with {tuple(steps.shape)} steps",
            expected=f"uint8 {(blocks * BLOCK_SIZE * bits // 8,)} with {(blocks,)} steps, for a weight {tuple(shape)}",
            fix="Merge again: the file was damaged or belongs to another architecture.",
        )
    whole = torch.empty(blocks * BLOCK_SIZE)
    if bits == 4:
        whole[::2], whole[1::2] = entries >> 4, entries & 15
    else:
        whole.copy_(entries)
    whole.sub_(2 ** (bits - 1)).view(blocks, BLOCK_SIZE).mul_(steps.float()[:, None])
    return whole[:elements].view(*shape)
