"""The tasks of the desk: what they ask for, where things may be, and when they are achieved."""
