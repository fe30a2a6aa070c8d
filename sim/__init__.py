"""Worlds to collect demonstrations in and to be judged in."""
