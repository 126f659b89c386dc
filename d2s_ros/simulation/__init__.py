"""Photo-textured 3D scenes with exact poses."""
