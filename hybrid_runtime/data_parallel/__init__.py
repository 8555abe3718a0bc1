"""Gradients in buckets and their reduction over the mesh."""
