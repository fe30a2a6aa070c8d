"""What all kernels share: argument checks, dispatch by device, launches, and the registration of operators."""
