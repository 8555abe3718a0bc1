"""Measuring a rank: spans and waits per action, the byte ledger, what the host and its GPUs are and do.

Imports nothing itself: `status`, `nvml` and `nvml_sampler` serve processes that must not pay for torch.
"""
