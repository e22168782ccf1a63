"""Data pipeline: finding and reading images, the order of the training images, augmentation and mixing."""
