"""A config becomes a folder of results."""
