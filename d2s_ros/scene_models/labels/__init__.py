"""The label head: points carry labels of their place instead of descriptors."""
