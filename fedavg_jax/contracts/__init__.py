"""Defines models, losses, metrics and algorithms, and a reference round."""
