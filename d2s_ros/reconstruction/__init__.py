"""From images with poses to tracks and points."""
