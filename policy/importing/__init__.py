"""Importing: checkpoints that other projects have released become checkpoints of ours, weight by weight."""
