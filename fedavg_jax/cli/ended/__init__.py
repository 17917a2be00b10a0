"""Refers users of commands of earlier versions to their successors."""
