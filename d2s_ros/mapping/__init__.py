"""Reconstruction, map bundles and their store."""
