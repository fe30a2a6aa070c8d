"""Checkpoint folders: what is in them, how they are written and read."""

from .folder import Checkpoint, collect_provenance, find_checkpoint, read_checkpoint, read_contract, write_checkpoint

__all__ = [
    "Checkpoint",
    "collect_provenance",
    "find_checkpoint",
    "read_checkpoint",
    "read_contract",
    "write_checkpoint",
]
