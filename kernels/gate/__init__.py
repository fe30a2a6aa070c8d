"""The compile gate: every kernel is compiled for sm_90 without a GPU and its code is judged."""
