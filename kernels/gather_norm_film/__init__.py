"""Gathering the tokens that stay, fused with their normalisation and modulation."""

from .operator import gather_norm_film

__all__ = ["gather_norm_film"]
