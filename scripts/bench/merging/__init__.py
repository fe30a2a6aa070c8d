"""`saccade bench merge`: merged policies beside their skills, joint training and published methods."""
