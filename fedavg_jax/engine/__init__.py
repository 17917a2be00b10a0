"""Compiles a federation and drives its rounds."""
