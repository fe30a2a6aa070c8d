"""The control process: the loop between the governor and the motors, at a fixed rate."""
