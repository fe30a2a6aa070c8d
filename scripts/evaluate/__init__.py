"""`saccade eval`: evaluate policies in simulation."""
