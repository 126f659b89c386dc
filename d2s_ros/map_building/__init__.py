"""From a log of images to a map."""
