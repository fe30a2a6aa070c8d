"""Pointing: where in a picture the things are that the instruction speaks of.

Each of a few maps over the stem's grid is turned into one expected position (a spatial softmax; Levine et al., 2016).
The first maps can be taught with labels (the instructed object, its goal); the others find their own use.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Pointing(nn.Module):
    """Read `points` expected positions off a grid of features, and make a token of them."""

    def __init__(self, features: int, points: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Linear(features, points)
        self.token = nn.Linear(3 * points, width)

    def forward(self, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map a grid [B, rows, columns, features] to a token [B, width], positions [B, points, 2], logits.

        Positions are fractions (u to the right, v downward) of the picture; logits: [B, points, rows, columns].
        """
        logits = self.maps(grid).float().permute(0, 3, 1, 2)
        rows, columns = logits.shape[-2:]
        probability = logits.flatten(2).softmax(-1)
        horizontal = (torch.arange(columns, device=grid.device) + 0.5) / columns
        vertical = (torch.arange(rows, device=grid.device) + 0.5) / rows
        probability_grid = probability.unflatten(2, (rows, columns))
        positions = torch.stack(
            [(probability_grid.sum(2) * horizontal).sum(-1), (probability_grid.sum(3) * vertical).sum(-1)], dim=-1
        )
        # How sharp a map is tells whether its thing is in view at all.
        sharpness = probability.square().sum(-1, keepdim=True).sqrt()
        keypoint_features = torch.cat([2 * positions - 1, sharpness], dim=-1).flatten(1)
        return self.token(keypoint_features.to(grid.dtype)), positions, logits


def pointing_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the maps at the labelled positions, a scalar.

    `logits`: [B, points, rows, columns]; `labels`: [B, labelled, 2] fractions of the picture for the first maps, whose
    mass is shared among the four cells around it, so that the expected position is exact up to half a cell from the
    rim. Labels out of view, not a number among them, count nothing.
    """
    rows, columns = logits.shape[-2:]
    labelled = labels.shape[1]
    log_probability = logits[:, :labelled].flatten(2).log_softmax(-1).unflatten(2, (rows, columns))
    labels = labels.nan_to_num(nan=-1.0)
    in_view = ((labels > 0) & (labels < 1)).all(-1)
    horizontal = _linear_weights(labels[..., 0], columns)
    vertical = _linear_weights(labels[..., 1], rows)
    expected = (log_probability * vertical[..., :, None] * horizontal[..., None, :]).sum((-1, -2))
    return -(expected * in_view).sum() / in_view.sum().clamp(min=1)


def _linear_weights(position: torch.Tensor, cells: int) -> torch.Tensor:
    """Return weights [..., cells] that sum to one and whose mean is `position`: linear between two cell centres.

    Beyond the outermost centres, half a cell from the rim, the outermost cell takes all.
    """
    cell_coordinate = (position * cells - 0.5).clamp(0, cells - 1)
    centres = torch.arange(cells, device=position.device)
    return functional.relu(1 - (cell_coordinate[..., None] - centres).abs())
