"""How a policy learns: demonstrations in memory, the loop, checkpoints it can resume from."""
