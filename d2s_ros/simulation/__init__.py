"""Simulated camera logs of photo-textured buildings, with exact poses, depth and visibility."""
