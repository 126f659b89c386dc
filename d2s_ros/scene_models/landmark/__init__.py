"""The landmark model: a table of described points and a network that scores candidates."""
