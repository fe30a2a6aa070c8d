"""`saccade bench evaluation`: measure episodes per hour, compared with LeRobot, and the loss of a cluster node."""
