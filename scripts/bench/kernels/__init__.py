"""`saccade bench kernels`: the kernels beside PyTorch's and other projects' code, behind a check of correctness."""
