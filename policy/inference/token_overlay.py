"""Where a policy looked: a point in the image for every visual token, and whether the trunk kept it."""

from __future__ import annotations

import numpy as np
import torch

from ..network.model import InstructionPlan, PolicyOutput, SaccadeModel


@torch.inference_mode()
def token_overlay(
    model: SaccadeModel, images: torch.Tensor, instruction_plan: InstructionPlan, decision: PolicyOutput
) -> np.ndarray:
    """Compute where the visual tokens of one decision look.

    A token's point is the centroid of its attention to the patches in the tower's last block. If a tower has pointing
    maps, the point of each view's first token is where the first map points.

    Args:
        model: The network.
        images: uint8 [1, V, 3, H, W].
        instruction_plan: The instruction of the decision.
        decision: What the network computed for it.

    Returns:
        float32 [V, M, 4]: u and v as fractions of the image, the fraction of trunk layers that kept the token, and
        whether the last layer kept it.
    """
    views_in = images[0].to(instruction_plan.text.device, instruction_plan.text.dtype)
    attention_weights = model.tower.attention_map(views_in, instruction_plan.modulations).float()  # [V, M, P]
    side = int(attention_weights.shape[-1] ** 0.5)
    attention_weights = (attention_weights / attention_weights.sum(-1, keepdim=True)).unflatten(-1, (side, side))
    centres = (torch.arange(side, device=attention_weights.device) + 0.5) / side  # of the patches
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
