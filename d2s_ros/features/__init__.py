"""Local feature extractors behind one contract."""
