"""Drivers: LeRobot's arms and the serial bus."""
