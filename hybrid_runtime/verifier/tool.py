"""What judges: the one place where the verifier looks at itself instead of at a run's files."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hybrid_runtime.git_state import git_state
from hybrid_runtime.verdict import RULESET


def tool_version() -> str:
    """Version of the installed package."""
    try:
        return version("hybrid-runtime")
    except PackageNotFoundError:
        return "not installed"


def tool_facts() -> dict[str, str]:
    """Version, git commit and rules of this verifier, and the Python that runs it."""
    return {
        "version": tool_version(),
        "git commit": git_state(Path(__file__).parent),
        "ruleset": RULESET,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
