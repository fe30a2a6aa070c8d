"""`saccade bench latency`: operations, bytes and time of a decision."""
