"""Models, the layers that they are made of, augmentation."""
