"""Gather the tokens that are kept, fused with RMS norm and FiLM."""

from .operator import gather_norm_film

__all__ = ["gather_norm_film"]
