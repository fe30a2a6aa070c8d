"""TIES: trim small entries, elect a sign for every entry, and merge the entries with this sign.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (2023), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ....errors import InputError

AGGREGATES = ("mean", "sum", "max")


def elected_signs(deltas: Sequence[torch.Tensor], majority: float = 1.0) -> torch.Tensor:
    """Return the sign of the sum of the changes.

    Args:
        deltas: Change of the weight by each of K skills, each [m, n].
        majority: The sign where the sum is zero.

    Returns:
        Signs [m, n].
    """
    signs = sum(deltas[1:], start=deltas[0]).sign()
    return signs.masked_fill_(signs == 0, majority)


def ties(
    deltas: Sequence[torch.Tensor],
    *,
    thresholds: Sequence[float] | None = None,
    majority: float = 1.0,
    aggregate: str = "mean",
    scale: float = 1.0,
) -> torch.Tensor:
    """Merge the changes of one weight.

    Args:
        deltas: Change of the weight by each of K skills, each [m, n].
        thresholds: Entries of a skill below its threshold count as zero, see `trim_threshold`.
        majority: The elected sign where the sum of the changes is zero.
        aggregate: How entries that agree with the elected sign are combined: "mean", as in the paper; "sum", as in
            MergeVLA's code; or "max", the largest magnitude.
        scale: Factor of the result.

    Returns:
        Merged change [m, n].

    Raises:
        InputError: `aggregate` is unknown.
    """
    if aggregate not in AGGREGATES:
        raise InputError(
            "ties: aggregate", got=aggregate, expected=" or ".join(AGGREGATES), fix="Use mean, as in the paper."
        )
    if thresholds is not None:
        deltas = [delta * (delta.abs() >= threshold) for delta, threshold in zip(deltas, thresholds, strict=True)]
    signs = elected_signs(deltas, majority)  # [m, n]
    # One skill at a time: a stack of all changes would need K times the memory.
    merged, agree = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta in deltas:
        agreeing = (delta * signs).clamp_(min=0)  # magnitude where the sign agrees, else 0
        if aggregate == "max":
            merged = torch.maximum(merged, agreeing)
        else:
            merged.add_(agreeing)
        if aggregate == "mean":
            agree.add_(agreeing > 0)
    if aggregate == "mean":
        merged.div_(agree.clamp_(min=1))
    return merged.mul_(signs).mul_(scale)


def trim_threshold(parts: Callable[[], Iterable[torch.Tensor]], keep: float) -> float:
    """Return the exact quantile of magnitudes above which the fraction `keep` of all entries of a skill lies.

    It is a radix search by the upper, then the lower half of the bits of the magnitudes, so that no more than one
    weight is in memory.

    Args:
        parts: Returns the skill's changes, one weight after another; it is called twice.
        keep: Fraction of entries that are kept, above 0 and at most 1.

    Raises:
        InputError: `keep` is out of range.
    """
    if not 0 < keep <= 1:
        raise InputError("ties: keep", got=keep, expected="above 0, at most 1", fix="Use 0.2, as in the paper.")
    # Non-negative float32 values have the same order as their bit patterns.
    upper = torch.zeros(1 << 15, dtype=torch.int64)
    for part in parts():
        upper += torch.bincount(_bits(part) >> 16, minlength=1 << 15)
    kept = max(1, round(keep * int(upper.sum())))
    above = upper.flip(0).cumsum(0).flip(0)
    # The highest bin with enough entries in it and above it.
    high = int((above >= kept).nonzero().max())
    kept -= int(above[high + 1]) if high + 1 < len(above) else 0
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        bits = _bits(part)
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int((lower.flip(0).cumsum(0).flip(0) >= kept).nonzero().max())
    return torch.tensor([(high << 16) | low], dtype=torch.int32).view(torch.float32).item()


def _bits(part: torch.Tensor) -> torch.Tensor:
    return part.float().abs().contiguous().view(torch.int32).flatten()
