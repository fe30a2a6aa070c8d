"""`saccade bench evaluation`: episodes an hour, beside LeRobot's own evaluation and on a cluster."""
