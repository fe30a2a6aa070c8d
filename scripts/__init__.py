"""The `saccade` command line: one file for each command."""
