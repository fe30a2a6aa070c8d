"""Evaluate policies: episodes in worker processes or on a cluster, their records, statistics and comparisons."""
