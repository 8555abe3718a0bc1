"""Prefill and decode of a model that lies over tensor-parallel and pipeline ranks: caches, items, sampled tokens."""
