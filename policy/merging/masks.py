"""Task masks: which entries of a merged change a skill takes, packed to bits, with the scale that fits best.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression" (2024): TALL masks, consensus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...errors import InputError


def task_mask(delta: torch.Tensor, merged: torch.Tensor, strictness: float) -> torch.Tensor:
    """Return where a skill takes the merged change, boolean [m, n]: |own| > strictness * |merged - own|.

    With strictness 1 no other mask brings the merged change nearer to the skill's own. Below it, entries enter whose
    sign may even be the others'. Raises InputError unless strictness is above 0.
    """
    if not strictness > 0:
        raise InputError("mask: strictness", got=strictness, expected="above 0", fix="MergeVLA uses 0.6.")
    return delta.abs() > strictness * (merged - delta).abs()


def least_squares_scale(delta: torch.Tensor, masked: torch.Tensor) -> float:
    """Return the factor that brings the masked merged change [m, n] nearest to a skill's own, 0 where it is empty."""
    delta, masked = delta.flatten(), masked.flatten()
    squared_norm = torch.dot(masked, masked).item()
    return torch.dot(delta, masked).item() / squared_norm if squared_norm else 0.0


def consensus(masks: Sequence[torch.Tensor], least: int = 2) -> torch.Tensor:
    """Return the entries, boolean [m, n], that at least so many skills take: without catastrophic and selfish ones.

    Raises InputError when `least` is not a number of skills.
    """
    if not 1 <= least <= len(masks):
        raise InputError(
            "consensus: least", got=least, expected=f"1 to the {len(masks)} skills", fix="The paper takes 2."
        )
    return torch.stack(list(masks)).sum(0) >= least


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Return a boolean mask as bits, uint8 [ceil(elements / 8)], its first element in the highest bit."""
    return torch.from_numpy(np.packbits(mask.numpy()))


def unpack_bits(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the boolean mask of a shape from its bits; the inverse of `pack_bits`.

    Raises InputError when the bits are not those of such a mask.
    """
    elements = torch.Size(shape).numel()
    if bits.dtype != torch.uint8 or bits.ndim != 1 or len(bits) != -(-elements // 8):
        raise InputError(
            "mask: bits",
            got=f"{bits.dtype} {tuple(bits.shape)}",
            expected=f"torch.uint8 ({-(-elements // 8)},), for a mask of {tuple(shape)}",
            fix="Merge again: the file was damaged or belongs to another architecture.",
        )
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=elements)).bool().view(*shape)
