"""hybrid_runtime."""
