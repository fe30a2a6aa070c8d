"""Checkpoint folders: what is in them, how they are written and read."""
