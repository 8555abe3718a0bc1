"""Planning: what units cost, where to cut, and the plan that results. Never imports torch."""
