"""Datasets in LeRobot's format: their columns, and the contract that they imply."""
