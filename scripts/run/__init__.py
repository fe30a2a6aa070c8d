"""`saccade run`: run a policy on an arm."""
