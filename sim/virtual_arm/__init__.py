"""A virtual SO-101: emulated servos on a pseudo-terminal move a simulated desk, and cameras show it.

A driver sees the same as with a real arm: a serial port and cameras.
"""
