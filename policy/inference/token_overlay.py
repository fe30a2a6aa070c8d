"""Where a policy looked: a place in the picture for every visual token, and whether the trunk kept it."""

from __future__ import annotations

import numpy as np
import torch

from ..network.model import InstructionPlan, PolicyOutput, SaccadeModel


@torch.inference_mode()
def token_overlay(
    model: SaccadeModel, images: torch.Tensor, instruction_plan: InstructionPlan, decision: PolicyOutput
) -> np.ndarray:
    """Return float32 [V, M, 4] of one decision: u, v, share of trunk layers that kept the token, kept last.

    `images`: uint8 [1, V, 3, H, W]. Every token stands at the centre of its attention to the patches in the tower's
    last block; where a tower points, a view's first token stands where the first map points.
    """
    pictures = images[0].to(instruction_plan.text.device, instruction_plan.text.dtype)
    attention_weights = model.tower.attention_map(pictures, instruction_plan.modulations).float()
    side = int(attention_weights.shape[-1] ** 0.5)
    attention_weights = (attention_weights / attention_weights.sum(-1, keepdim=True)).unflatten(-1, (side, side))
    centres = (torch.arange(side, device=attention_weights.device) + 0.5) / side
    centroids = torch.stack(
        [(attention_weights.sum(-2) * centres).sum(-1), (attention_weights.sum(-1) * centres).sum(-1)], dim=-1
    )
    if decision.positions is not None:
        centroids[:, 0] = decision.positions[0, :, 0].to(centroids.dtype)
    views, count = centroids.shape[:2]
    kept = torch.zeros(len(decision.kept_indices), views * count, device=centroids.device)
    for layer, chosen in enumerate(decision.kept_indices):
        kept[layer, slice(None) if chosen is None else chosen[0]] = 1.0
    kept = kept.unflatten(1, (views, count))
    return torch.cat([centroids, kept.mean(0)[..., None], kept[-1][..., None]], dim=-1).cpu().numpy()
