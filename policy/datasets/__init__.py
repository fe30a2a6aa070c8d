"""Datasets in LeRobot's format: their columns, and the contract of a policy that learns from them."""
