"""Defines the command `fedavg-jax` and its subcommands."""
