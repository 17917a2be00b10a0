"""Who trains in a round, on what, in which order. NumPy only."""
