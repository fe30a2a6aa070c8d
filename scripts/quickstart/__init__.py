"""`saccade quickstart`: collect, train, evaluate and report in one command."""
