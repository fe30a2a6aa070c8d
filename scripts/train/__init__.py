"""`saccade train`: train a policy from demonstrations."""
