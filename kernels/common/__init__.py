"""What all kernels share: argument checks, dispatch by device, and the registration of operators."""
