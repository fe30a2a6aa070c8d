"""Attention over masks made of interval levels."""

from .branches import attend_with_rest, join, rest_plan
from .masks import Levels, causal, coupled, everything, hide, neighbourhood, of_blocks, pack_segments, sliding, take
from .packed import batched_block_sparse_attention, block_sparse_attention
from .reference import attention, interval_mask

__all__ = [
    "Levels",
    "attend_with_rest",
    "attention",
    "batched_block_sparse_attention",
    "block_sparse_attention",
    "causal",
    "coupled",
    "everything",
    "hide",
    "interval_mask",
    "join",
    "neighbourhood",
    "of_blocks",
    "pack_segments",
    "rest_plan",
    "sliding",
    "take",
]
