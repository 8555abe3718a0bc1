"""A stage's forward and backward, and the executor that walks one rank's action list."""
