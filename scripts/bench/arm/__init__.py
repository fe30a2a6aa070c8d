"""`saccade bench arm`: faults injected into the whole stack of the arm, a soak, and the control loop's timing."""
