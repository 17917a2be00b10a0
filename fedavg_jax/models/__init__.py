"""Defines the paper's models, their layers and image augmentation."""
