"""`saccade bench`: what policies, kernels, worlds and the arm cost, and how far they can be relied on."""
