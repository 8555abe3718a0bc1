"""The training step around the pipeline: optimizer, learning rate, gradient norm over the whole mesh."""
