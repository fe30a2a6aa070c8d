"""The readable reference of interval-level attention.

A mask is written with one integer for each key, its level, and two for each query, the bounds `low` and `high`: the
query sees the keys whose level lies between its bounds. Causal, bidirectional, coupled and padded masks are all of
this form, and gathering tokens keeps it: a pruned sequence carries the levels of the tokens that stayed.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def interval_mask(low: torch.Tensor, high: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the boolean mask [..., Q, K]: true where `low <= level <= high`.

    `low` and `high`: integers [..., Q]; `level`: integers [..., K].
    """
    keys = level[..., None, :]
    return (keys >= low[..., :, None]) & (keys <= high[..., :, None])


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend from `query` [B, heads, Q, d] to `key`, `value` [B, heads, K, d]; a query that sees nothing gets zero.

    `mask`: boolean, broadcastable to [B, heads, Q, K], true where a query sees a key.
    """
    if query.device.type == "cpu":
        # Torch's CPU attention has no fast bfloat16 backward: in float32 it is ten times as fast.
        with torch.autocast("cpu", enabled=False):
            parts = (query.float(), key.float(), value.float())
            output = functional.scaled_dot_product_attention(*parts, attn_mask=mask).to(query.dtype)
    else:
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if mask is not None:
        output = torch.where(mask.any(-1, keepdim=True), output, 0.0)
    return output
