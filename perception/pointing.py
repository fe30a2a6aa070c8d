"""Pointing: the positions in the image of the objects that the instruction names.

Each of a few maps over the stem's grid gives one expected position (a spatial softmax; Levine et al., 2016, section 5).
The first maps can be trained with labels (the instructed object, its goal); the others are trained by the task loss.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Pointing(nn.Module):
    """A spatial softmax: expected positions of `points` maps over a grid of features, and a token made of them.

    Args:
        features: width of the grid's features.
        points: number of maps.
        width: width of the token.
    """

    def __init__(self, features: int, points: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Linear(features, points)
        self.token = nn.Linear(3 * points, width)

    def forward(self, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map a grid of features to a token and positions.

        Args:
            grid: [B, rows, columns, features].

        Returns:
            The token [B, width]; the positions [B, points, 2] as fractions of the image (u to the right, v downward);
            the maps' logits [B, points, rows, columns].
        """
        logits = self.maps(grid).float().permute(0, 3, 1, 2)  # [B, points, rows, columns]
        rows, columns = logits.shape[-2:]
        probability = logits.flatten(2).softmax(-1)  # [B, points, rows * columns]
        horizontal = (torch.arange(columns, device=grid.device) + 0.5) / columns
        vertical = (torch.arange(rows, device=grid.device) + 0.5) / rows
        probability_grid = probability.unflatten(2, (rows, columns))
        positions = torch.stack(
            [(probability_grid.sum(2) * horizontal).sum(-1), (probability_grid.sum(3) * vertical).sum(-1)], dim=-1
        )  # [B, points, 2]
        # A sharp map tells that its object is in view.
        sharpness = probability.square().sum(-1, keepdim=True).sqrt()  # [B, points, 1]
        keypoint_features = torch.cat([2 * positions - 1, sharpness], dim=-1).flatten(1)  # [B, 3 * points]
        return self.token(keypoint_features.to(grid.dtype)), positions, logits


def pointing_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the maps at the labelled positions, a scalar.

    A label's probability is shared among the four nearest cells, so that the expected position is exact up to half a
    cell from the border.

    Args:
        logits: [B, points, rows, columns].
        labels: [B, labelled, 2], positions for the first maps as fractions of the image. Labels outside the image and
            NaN do not count.
    """
    rows, columns = logits.shape[-2:]
    labelled = labels.shape[1]
    log_probability = logits[:, :labelled].flatten(2).log_softmax(-1).unflatten(2, (rows, columns))
    labels = labels.nan_to_num(nan=-1.0)
    in_view = ((labels > 0) & (labels < 1)).all(-1)
    horizontal = _linear_weights(labels[..., 0], columns)  # [B, labelled, columns]
    vertical = _linear_weights(labels[..., 1], rows)  # [B, labelled, rows]
    expected = (log_probability * vertical[..., :, None] * horizontal[..., None, :]).sum((-1, -2))  # [B, labelled]
    return -(expected * in_view).sum() / in_view.sum().clamp(min=1)


def _linear_weights(position: torch.Tensor, cells: int) -> torch.Tensor:
    """Return linear interpolation weights [..., cells]: they sum to one, and their mean is `position`.

    Beyond the outermost cell centres, half a cell from the border, the outermost cell gets all weight.
    """
    cell_coordinate = (position * cells - 0.5).clamp(0, cells - 1)
    centres = torch.arange(cells, device=position.device)
    return functional.relu(1 - (cell_coordinate[..., None] - centres).abs())
