"""Training: demonstrations in batches, the training loop, and the state to resume from."""
