"""`saccade bench merge`: compare merged policies with single skills, joint training and published methods."""
