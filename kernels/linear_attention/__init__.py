"""Linear attention with decay over ragged segments, with a state that is carried from call to call."""

from .operator import linear_attention
from .reference import decay_ladder

__all__ = ["decay_ladder", "linear_attention"]
