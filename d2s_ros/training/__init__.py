"""Samples, losses and training loops."""
