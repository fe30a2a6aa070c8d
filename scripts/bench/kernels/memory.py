"""Visited tiles and memory of attention plans at the sizes of real policies; runs on any machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .problem import AttentionCase
from .shapes import Shape, shapes

FAMILIES_WITHOUT_PLAN = ("linear", "gather", "plan")
PROBE_HEAD_WIDTH = 8
"""Head width for the block selection; the number of selected blocks does not depend on it."""


def plan_costs() -> list[dict[str, Any]]:
    """Return `plan_cost` of each attention case at full size."""
    return [plan_cost(shape) for shape in shapes("full") if shape.family not in FAMILIES_WITHOUT_PLAN]


def plan_cost(shape: Shape) -> dict[str, Any]:
    """Return the fraction of tiles that a case visits, and the bytes of its plan and of a dense mask.

    The dense mask has a byte for each pair of tokens. It is per head if heads select their own blocks, and per sample
    if samples differ in length.
    """
    selects_blocks = shape.family == "history" and shape.keep < 1
    # Without block selection the plan does not depend on the heads: one is enough.
    heads = shape.heads if selects_blocks else 1
    case = AttentionCase(replace(shape, heads=heads, key_heads=heads, width=PROBE_HEAD_WIDTH), "cpu", torch.float32)
    plan = case.plan(case.query, case.key)
    tiles = plan.query_tiles[:, 1].gt(0), plan.key_tiles[:, 1].gt(0)
    same_sample = (plan.query_tiles[:, None, 2] == plan.key_tiles[None, :, 2]) & tiles[0][:, None] & tiles[1]
    masked = 1 if len(set(shape.lengths)) == 1 else len(shape.lengths)
    return {
        "case": shape.title,
        "tile_density": float(plan.row_counts.sum()) / heads / float(same_sample.sum()),
        "plan_bytes": sum(part.nbytes for part in plan if isinstance(part, torch.Tensor)),
        "mask_bytes": masked * heads * max(shape.lengths) * (shape.keys or max(shape.lengths)),
    }
