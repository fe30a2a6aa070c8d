"""`saccade bench kernels`: our kernels compared with PyTorch's and other projects' code, after a correctness check."""
