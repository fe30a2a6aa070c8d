"""Linear attention with decay over packed segments, with a state that is carried from call to call."""

from .operator import linear_attention
from .reference import alibi_log_decays

__all__ = ["alibi_log_decays", "linear_attention"]
