"""The faults of the arm: injected one by one on the whole stack, and judged by what the virtual arm did."""
