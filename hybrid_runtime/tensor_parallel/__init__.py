"""Tensor-parallel layers on plain local tensors, for this project's models and for yours."""
