"""Plans of block-sparse attention: tiles and their lists, blocks, what is pooled, scored and chosen."""

from .attention_plan import HIDDEN, AttentionPlan, batch_plan, build_plan
from .blocks import Blocks, cut_blocks, uneven_blocks
from .index import cut_tiles, tile_lists
from .partition import Partition, box_partition, partition_blocks, recurrent_partition
from .pooling import pool
from .selection import Selection, block_scores, choose_keys, choose_share, choose_top, complement, pack

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
    "choose_keys",
    "choose_share",
    "choose_top",
    "complement",
    "cut_blocks",
    "cut_tiles",
    "pack",
    "partition_blocks",
    "pool",
    "recurrent_partition",
    "tile_lists",
    "uneven_blocks",
]
