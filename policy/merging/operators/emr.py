"""EMR: one unified change, and for every skill a mask and a scale that bring it back near its own.

Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging" (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .ties import ties


def unify(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the elected sign times the largest magnitude among the changes, each [m, n], that have this sign."""
    return ties(deltas, majority=-1.0, aggregate="max")


def sign_agreement(delta: torch.Tensor, unified: torch.Tensor) -> torch.Tensor:
    """Return where a skill's change has the unified one's sign, boolean [m, n]."""
    return delta * unified > 0


def rescaler(own: float, masked: float) -> float:
    """Return a skill's scale from the sums, over its weights, of the mean magnitudes of its own changes and of the
    masked unified ones."""
    return own / masked if masked else 0.0
