"""`saccade train`: train a policy on demonstrations."""
