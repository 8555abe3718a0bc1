"""Communication: process groups from the mesh, autograd collectives, stage-to-stage messages."""
