"""The training loss: error of the actions, and pointing error where the demonstrations are labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...perception.pointing import pointing_loss
from .history import recalled_point_loss
from .model import PolicyOutput


@dataclass(frozen=True)
class TrainingLoss:
    """The parts of the training loss of one batch.

    Attributes:
        action: L1 loss of the actions of each row, [B]; see `chunk_loss`.
        grounding: Pointing loss, a scalar; zero without labels. See `grounding_loss`.
    """

    action: torch.Tensor
    grounding: torch.Tensor

    def per_row(self, grounding_weight: float) -> torch.Tensor:
        """Return action + weight * grounding of each row, [B]; every row carries the batch's grounding loss."""
        return self.action + grounding_weight * self.grounding

    def total(self, grounding_weight: float) -> torch.Tensor:
        """Return the scalar to minimise: mean action loss + weight * grounding loss."""
        return self.action.mean() + grounding_weight * self.grounding


def chunk_loss(predicted: torch.Tensor, target: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of normalised action chunks, the L1 loss of OpenVLA-OFT and CogVLA.

    Args:
        predicted: Actions [B, T, A].
        target: Demonstrated actions [B, T, A].
        padded: Boolean [B, T], true for steps past the end of the episode; they do not count.

    Returns:
        The loss of each row, [B]; zero where all steps are padded.
    """
    error = (predicted - target).abs().mean(-1)  # [B, T]
    real = (~padded).to(error.dtype)
    return (error * real).sum(-1) / real.sum(-1).clamp(min=1)


def grounding_loss(output: PolicyOutput, labels: torch.Tensor, points: torch.Tensor | None = None) -> torch.Tensor:
    """Return the pointing loss over all views plus the error of recalled points.

    Args:
        output: What the network computed.
        labels: Where each view sees the labelled points, [B, V, LABELLED_POINTS, 2], as fractions of the image.
        points: The labelled points [B, 3 * LABELLED_POINTS] in the arm's frame, in metres.

    Returns:
        A scalar; zero for a policy that neither points nor recalls.
    """
    loss = output.actions.new_zeros(())
    if output.logits is not None:
        loss = loss + pointing_loss(output.logits.flatten(0, 1), labels.flatten(0, 1))
    if output.recalled_points is not None and points is not None:
        loss = loss + recalled_point_loss(output.recalled_points, points)
    return loss
