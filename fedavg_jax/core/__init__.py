"""Holds what all folders share: errors, clients, files, options; no JAX."""
