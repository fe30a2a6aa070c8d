"""`saccade bench latency`: FLOPs, memory and latency of a decision."""
