"""Plans of block-sparse attention: tiles and their lists; blocks of tokens, their pooling, scoring and selection."""

from .attention_plan import HIDDEN, AttentionPlan, batch_plan, build_plan
from .blocks import Blocks, cut_blocks, uneven_blocks
from .index import cut_tiles, tile_lists
from .partition import Partition, box_partition, partition_blocks, recurrent_partition
from .pooling import pool
from .selection import Selection, block_scores, complement, pack_selection, select_top_k, select_top_p, top_k_key_bias

__all__ = [
    "HIDDEN",
    "AttentionPlan",
    "Blocks",
    "Partition",
    "Selection",
    "batch_plan",
    "block_scores",
    "box_partition",
    "build_plan",
    "complement",
    "cut_blocks",
    "cut_tiles",
    "pack_selection",
    "partition_blocks",
    "pool",
    "recurrent_partition",
    "select_top_k",
    "select_top_p",
    "tile_lists",
    "top_k_key_bias",
    "uneven_blocks",
]
