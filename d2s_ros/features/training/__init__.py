"""Training of SuperPoint weights: `python -m d2s_ros.features.training --help`."""
