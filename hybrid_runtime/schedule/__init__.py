"""Schedules: pure functions (pipeline ranks, microbatches) -> action lists, and what checks, lowers and draws them."""
