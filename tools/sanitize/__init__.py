"""Calls the compiled kernels, built with sanitizers, outside their contracts."""
