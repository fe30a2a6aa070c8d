"""Action heads: a cross-attention expert or a head on the trunk's action slots."""
