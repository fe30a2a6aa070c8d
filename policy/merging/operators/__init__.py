"""Merging operators: the skills' changes of one weight in, one merged change out."""
