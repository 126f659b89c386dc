"""Feed mutated files to everything that reads what others wrote; see `python -m tools.fuzz -h`."""
