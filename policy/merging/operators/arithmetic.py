"""Task arithmetic, and DARE's random drop.

Ilharco et al., "Editing Models with Task Arithmetic" (2023), section 2; Yu et al., "Language Models are Super Mario"
(2024), arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....errors import InputError


def task_arithmetic(deltas: Sequence[torch.Tensor], *, scale: float = 1.0) -> torch.Tensor:
    """Return the scaled sum of the task vectors of one weight.

    Args:
        deltas: Change of the weight by each of K skills, each [m, n].
        scale: Factor of the sum; 1 / K gives the mean.

    Returns:
        Merged change [m, n].
    """
    return scale * torch.stack(list(deltas)).sum(0)  # [K, m, n] -> [m, n]


def drop_and_rescale(delta: torch.Tensor, drop: float, generator: torch.Generator) -> torch.Tensor:
    """Set each entry to zero with probability `drop` and divide the others by 1 - `drop` (DARE).

    The expectation stays the same.

    Args:
        delta: Change of a weight, [m, n].
        drop: Drop rate, from 0 to below 1.
        generator: Draws the entries.

    Raises:
        InputError: `drop` is out of range.
    """
    if not 0 <= drop < 1:
        raise InputError("dare: drop", got=drop, expected="0 or more, below 1", fix="Use 0.9, as in the paper.")
    kept = torch.rand(delta.shape, generator=generator) >= drop  # [m, n]
    return torch.where(kept, delta / (1 - drop), 0.0)
