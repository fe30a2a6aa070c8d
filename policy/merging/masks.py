"""Task masks: which entries of a merged change a skill uses, packed to bits, and its least-squares scale.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression" (2024),
arXiv 2405.07813: TALL masks and Consensus Merging.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...errors import InputError


def task_mask(delta: torch.Tensor, merged: torch.Tensor, strictness: float) -> torch.Tensor:
    """Return the mask |delta| > strictness * |merged - delta| of a skill.

    With strictness 1 it is the mask that brings the merged change nearest to the skill's change. Below 1 it also lets
    entries of the wrong sign pass.

    Args:
        delta: Change of the weight by the skill, [m, n].
        merged: Merged change, [m, n].
        strictness: Threshold lambda of the paper, above 0.

    Returns:
        Boolean [m, n].

    Raises:
        InputError: `strictness` is not above 0.
    """
    if not strictness > 0:
        raise InputError("mask: strictness", got=strictness, expected="above 0", fix="Use 1, or 0.6 as MergeVLA.")
    return delta.abs() > strictness * (merged - delta).abs()


def least_squares_scale(delta: torch.Tensor, masked: torch.Tensor) -> float:
    """Return the scale s that minimises ||s * masked - delta|| for two changes [m, n]; 0 if `masked` is zero."""
    delta, masked = delta.flatten(), masked.flatten()
    squared_norm = torch.dot(masked, masked).item()
    return torch.dot(delta, masked).item() / squared_norm if squared_norm else 0.0


def consensus(masks: Sequence[torch.Tensor], least: int = 2) -> torch.Tensor:
    """Return the entries that at least `least` skills use, without catastrophic (0) and selfish (1) ones.

    Args:
        masks: Task masks of K skills, each boolean [m, n].
        least: Minimum number of skills, 1 to K.

    Returns:
        Boolean [m, n].

    Raises:
        InputError: `least` is out of range.
    """
    if not 1 <= least <= len(masks):
        raise InputError(
            "consensus: least", got=least, expected=f"1 to the {len(masks)} skills", fix="Use 2, as in the paper."
        )
    return torch.stack(list(masks)).sum(0) >= least


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack a boolean mask to bits, uint8 [ceil(elements / 8)], with the first element in the highest bit."""
    return torch.from_numpy(np.packbits(mask.numpy()))


def unpack_bits(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unpack the boolean mask of a shape: the inverse of `pack_bits`.

    Raises:
        InputError: Number or dtype of the bytes do not fit the shape.
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
