"""Perception: vision towers that the instruction conditions, their fusion, and token pruning."""
