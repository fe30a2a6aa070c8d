"""The cost of a decision: FLOPs, bytes, and synchronisations of host and device."""
