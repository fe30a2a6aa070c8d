"""`saccade run`: drive an arm with a policy."""
