"""Tests are in folders named after those that they test."""
