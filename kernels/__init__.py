"""Attention and the operations around it, each with a readable reference."""
