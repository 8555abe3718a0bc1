"""Checkpoints that any mesh can continue from: what is kept, how it lies on the disk, writing and reading."""
