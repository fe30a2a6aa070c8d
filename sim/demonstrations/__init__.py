"""Collect demonstrations: attempts in worker processes, staging, and the dataset that they become."""
