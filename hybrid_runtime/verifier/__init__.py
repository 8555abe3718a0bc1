"""Judging: static checks on the file, metrics from raw records, statistics, verdicts. Never imports torch."""
