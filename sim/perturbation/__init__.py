"""Test robustness: perturbations of worlds along seven axes, and swaps that reveal memorised behaviour."""
