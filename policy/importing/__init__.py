"""Import checkpoints that other projects released: convert their weights to a checkpoint of Saccade."""
