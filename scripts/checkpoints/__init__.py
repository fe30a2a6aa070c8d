"""Find checkpoints by name and load them as policies, in this process and in worker processes."""
