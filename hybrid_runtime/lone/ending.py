"""How a process of this folder ends: one sentence about what went wrong, and a documented exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hybrid_runtime.errors import ExitCode, HybridRuntimeError


def ended(work: Callable[[], object]) -> int:
    """Does the work; returns the exit code."""
    try:
        work()
    except HybridRuntimeError as problem:
        print(f"hybrid-runtime: {problem}", file=sys.stderr)
        return problem.exit_code
    except OSError as problem:
        print(f"hybrid-runtime: {problem}; check the disk and the folder's permissions", file=sys.stderr)
        return ExitCode.ERROR
    return ExitCode.PASS
