"""Count what a decision costs: operations, bytes, and waits of the host for the device."""
