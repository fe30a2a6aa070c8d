"""The losses that the network learns from."""

from __future__ import annotations

import torch

from ...perception.pointing import pointing_loss
from .history import recalled_point_loss
from .model import PolicyOutput


def chunk_loss(predicted: torch.Tensor, target: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error [B] of normalised chunks [B, T, A] over the steps that are not `padded` [B, T]."""
    error = (predicted - target).abs().mean(-1)
    real = (~padded).to(error.dtype)
    return (error * real).sum(-1) / real.sum(-1).clamp(min=1)


def grounding_loss(decision: PolicyOutput, labels: torch.Tensor, points: torch.Tensor | None = None) -> torch.Tensor:
    """Return the pointing loss of all views and what is recalled wrongly, a scalar; zero for a policy without either.

    `labels`: [B, V, labelled, 2], fractions of the picture; `points`: [B, 3 * labelled], metres in the arm's frame.
    """
    loss = decision.actions.new_zeros(())
    if decision.logits is not None:
        loss = loss + pointing_loss(decision.logits.flatten(0, 1), labels.flatten(0, 1))
    if decision.recalled_points is not None and points is not None:
        loss = loss + recalled_point_loss(decision.recalled_points, points)
    return loss
