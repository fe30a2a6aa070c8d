"""TIES: trim what is small, elect a sign for every weight, and add up those who agree with it.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (2023), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ....errors import InputError

AGGREGATES = ("mean", "sum", "max")


def elected_signs(deltas: Sequence[torch.Tensor], majority: float = 1.0) -> torch.Tensor:
    """Return the sign of the sum of the skills' changes, each [m, n]; `majority` where they cancel out."""
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
    """Merge the skills' changes of one weight, each [m, n].

    Entries below their skill's threshold (see `trim_threshold`) count as nothing. `aggregate`: the mean of the entries
    that agree with the elected sign, as in the paper, their "sum", as MergeVLA released it, or the largest.
    """
    if aggregate not in AGGREGATES:
        raise InputError("ties: aggregate", got=aggregate, expected=" or ".join(AGGREGATES), fix="Choose one of them.")
    if thresholds is not None:
        deltas = [delta * (delta.abs() >= threshold) for delta, threshold in zip(deltas, thresholds, strict=True)]
    signs = elected_signs(deltas, majority)
    # One skill at a time: all of them side by side would be many times a large weight's size.
    merged, agree = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta in deltas:
        agreeing = (delta * signs).clamp_(min=0)
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
    """Return the magnitude that the `keep` largest fraction of all entries of a skill reaches, exactly.

    `parts` gives the skill's changes one weight at a time, and is called twice: the threshold is found by the upper,
    then the lower half of the bits of the magnitudes, so that no more than one weight is in memory. Raises InputError
    unless 0 < keep <= 1.
    """
    if not 0 < keep <= 1:
        raise InputError("ties: keep", got=keep, expected="above 0, at most 1", fix="The paper keeps 0.2.")
    # Magnitudes of float32 are ordered as their bit patterns are.
    upper = torch.zeros(1 << 15, dtype=torch.int64)
    for part in parts():
        upper += torch.bincount(_bits(part) >> 16, minlength=1 << 15)
    wanted = max(1, round(keep * int(upper.sum())))
    above = upper.flip(0).cumsum(0).flip(0)
    # The last bin from which on upwards enough entries lie.
    high = int((above >= wanted).nonzero().max())
    wanted -= int(above[high + 1]) if high + 1 < len(above) else 0
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        bits = _bits(part)
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int((lower.flip(0).cumsum(0).flip(0) >= wanted).nonzero().max())
    return torch.tensor([(high << 16) | low], dtype=torch.int32).view(torch.float32).item()


def _bits(part: torch.Tensor) -> torch.Tensor:
    return part.float().abs().contiguous().view(torch.int32).flatten()
