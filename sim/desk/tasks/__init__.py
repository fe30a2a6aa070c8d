"""The tasks of the desk: what they ask for, where objects may be, and when they are achieved."""
