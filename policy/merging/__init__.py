"""Merge skills that were fine-tuned from one base checkpoint into one policy, and route between them."""
