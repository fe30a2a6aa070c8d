"""Task arithmetic, and the random dropping that makes room before it.

Ilharco et al., "Editing Models with Task Arithmetic" (2023); Yu et al., "Language Models are Super Mario" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....errors import InputError


def task_arithmetic(deltas: Sequence[torch.Tensor], *, scale: float = 1.0) -> torch.Tensor:
    """Return the scaled sum of the skills' changes of one weight, each [m, n]; a scale of 1/K is their mean."""
    return scale * torch.stack(list(deltas)).sum(0)


def drop_and_rescale(delta: torch.Tensor, drop: float, generator: torch.Generator) -> torch.Tensor:
    """Return a change of which each entry is dropped with chance `drop` and the others grow by 1 / (1 - drop).

    DARE: on average nothing changes. Raises InputError unless 0 <= drop < 1.
    """
    if not 0 <= drop < 1:
        raise InputError("dare: drop", got=drop, expected="0 or more, below 1", fix="The paper drops 0.9.")
    kept = torch.rand(delta.shape, generator=generator) >= drop
    return torch.where(kept, delta / (1 - drop), 0.0)
