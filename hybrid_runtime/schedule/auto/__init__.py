"""The searched schedule: known schedules and a greedy one as starts, annealed towards a lower bound."""
