"""What everything shares: errors, clients, files, options. NumPy only."""
