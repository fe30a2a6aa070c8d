"""Collect demonstrations: run attempts in worker processes, stage them, and write the dataset."""
