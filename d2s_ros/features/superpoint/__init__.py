"""SuperPoint: network, weight files, extractor, its twin in 8-bit integers."""
