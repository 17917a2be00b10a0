"""Turns a config into a folder of results."""
