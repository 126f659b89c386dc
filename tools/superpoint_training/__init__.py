"""Training of SuperPoint weights: `python -m tools.superpoint_training --help`."""
