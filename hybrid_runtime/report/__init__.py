"""Showing: plan, records and verdict as terminal tables, Markdown and a Perfetto trace. Never imports torch."""
