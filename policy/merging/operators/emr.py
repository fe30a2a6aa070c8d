"""EMR: one unified change, with a mask and a scale for each skill.

Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging" (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .ties import ties


def unify(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Elect: return the elected sign times the largest magnitude among the entries with this sign.

    Args:
        deltas: Change of the weight by each of K skills, each [m, n].

    Returns:
        Unified change [m, n].
    """
    return ties(deltas, majority=-1.0, aggregate="max")


def sign_agreement(delta: torch.Tensor, unified: torch.Tensor) -> torch.Tensor:
    """Mask: return where the change of a skill [m, n] has the sign of the unified one, boolean [m, n]."""
    return delta * unified > 0


def rescaler(own: float, masked: float) -> float:
    """Rescale: return the scale of a skill, 0 if its mask is empty everywhere.

    Args:
        own: Mean magnitudes of the skill's changes, summed over the weights.
        masked: Mean magnitudes of the masked unified changes, summed over the weights.
    """
    return own / masked if masked else 0.0
