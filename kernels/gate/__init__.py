"""The compile gate: compile every kernel for sm_90 without a GPU and check its machine code."""
