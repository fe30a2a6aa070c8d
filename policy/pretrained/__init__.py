"""Pretrained backbones: load them, and adapt them with low-rank factors."""
