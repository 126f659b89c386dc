"""Rigid transforms and camera models (NumPy and OpenCV only)."""
