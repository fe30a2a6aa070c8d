"""`saccade bench`: measure speed, cost and reliability of policies, kernels, simulator and arm software."""
