"""What the policy sees: towers conditioned by the instruction, and token pruning."""
