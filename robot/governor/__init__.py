"""The governor: pure rules that decide what may reach a motor, and the flight record of their decisions."""
