"""The d2s command line."""
