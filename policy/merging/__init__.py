"""Merging skills: what each of them added to a shared beginning, and the operators that make one policy of it."""
