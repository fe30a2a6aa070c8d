"""A virtual SO-101: emulated servos on a pseudo-terminal that move the desk twin, and cameras that see it.

Whoever drives it sees what a real arm shows: a serial port and cameras.
"""
