"""Measuring a rank: spans and waits per action, the byte ledger, NVML."""
