"""`saccade eval`: judge policies in simulation."""
