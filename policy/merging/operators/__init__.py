"""Merging operators: combine the changes that several skills made to one weight into one merged change."""
