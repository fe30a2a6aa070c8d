"""`saccade quickstart`: collect demonstrations, train, evaluate and report in one command."""
