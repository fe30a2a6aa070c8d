"""Where a policy looked: a place in the picture for every visual token, and whether the trunk kept it."""

from __future__ import annotations

import numpy as np
import torch

from .model import Decision, SaccadeModel


class Gaze:
    """Watch a model decide, and tell afterwards where its visual tokens came from.

    A view's first token stands where the first pointing map points; each other one at the centre of its attention to
    the patches in the tower's last block, computed only when asked for.
    """

    def __init__(self, model: SaccadeModel) -> None:
        self._tower = model.tower
        self._layers = len(model.trunk.keep)
        self._seen: torch.Tensor | None = None
        self._tower.blocks[-1].register_forward_pre_hook(self._remember)

    def _remember(self, block: torch.nn.Module, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._seen = given[0].detach()

    @torch.inference_mode()
    def tokens(self, decision: Decision) -> np.ndarray:
        """Return float32 [V, M, 4] of the first sample's views: u, v, share of trunk layers that kept it, kept last."""
        views, grid = decision.positions.shape[1], self._tower.positions.shape[1]
        side = int(grid**0.5)
        chance = self._tower.blocks[-1].attention_map(self._seen[:views])[:, grid:, :grid]
        chance = (chance / chance.sum(-1, keepdim=True)).unflatten(-1, (side, side))
        centres = (torch.arange(side) + 0.5) / side
        places = torch.stack([(chance.sum(-2) * centres).sum(-1), (chance.sum(-1) * centres).sum(-1)], dim=-1)
        places[:, 0] = decision.positions[0, :, 0].to(places.dtype)
        count = places.shape[1]
        kept = torch.zeros(self._layers, views * count)
        for layer, chosen in enumerate(decision.kept):
            kept[layer, slice(None) if chosen is None else chosen[0]] = 1.0
        kept = kept.unflatten(1, (views, count))
        return torch.cat([places.float(), kept.mean(0)[..., None], kept[-1][..., None]], dim=-1).numpy()
