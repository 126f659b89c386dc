"""Scene models: descriptors of one image to scene coordinates and reliability."""
