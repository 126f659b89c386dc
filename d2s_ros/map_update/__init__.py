"""Self-supervised map updates."""
