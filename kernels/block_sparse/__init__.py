"""Block-sparse attention with masks in the form of interval levels."""

from .branches import attend_with_pooled, combine_attention, plan_unselected
from .masks import (
    IntervalLevels,
    block_levels,
    causal,
    concatenate_segments,
    coupled,
    full_attention,
    hide_keys,
    neighbourhood,
    select_tokens,
    sliding_window,
)
from .packed import batched_block_sparse_attention, block_sparse_attention
from .reference import attention, interval_mask

__all__ = [
    "IntervalLevels",
    "attend_with_pooled",
    "attention",
    "batched_block_sparse_attention",
    "block_levels",
    "block_sparse_attention",
    "causal",
    "combine_attention",
    "concatenate_segments",
    "coupled",
    "full_attention",
    "hide_keys",
    "interval_mask",
    "neighbourhood",
    "plan_unselected",
    "select_tokens",
    "sliding_window",
]
