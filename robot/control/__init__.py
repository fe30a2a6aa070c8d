"""The control process: the loop between the governor and the motors, at the arm's own rate."""
