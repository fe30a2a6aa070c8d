"""Inference: a policy that acts in one environment or on an arm, or in many environments at once."""
