"""The regression model: the network of the D2S paper."""
