"""Evaluate policies: run episodes in worker processes or on a cluster, record them, and compute statistics."""
