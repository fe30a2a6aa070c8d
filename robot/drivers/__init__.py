"""Drivers: what an arm has to offer, LeRobot's arms, and the serial bus."""
