"""Token sources and samplers."""
