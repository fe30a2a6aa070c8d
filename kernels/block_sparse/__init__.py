"""Attention over masks made of interval levels."""

from .reference import attention, interval_mask

__all__ = ["attention", "interval_mask"]
