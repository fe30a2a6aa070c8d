"""Decide: a policy in an environment or for an arm, alone or for many environments at once."""
