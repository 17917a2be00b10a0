"""From files to arrays, and who holds what. NumPy only."""
