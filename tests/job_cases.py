"""Runs the job's entry point again and again in one process, alone, each time with another bad deployment.

    python -m tests.job_cases CASES.json     [{"arguments": [...], "environment": {...}}, ...] -> [[code, text], ...]

A process of its own, because a rank pins itself to its cores and joins torch.distributed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist

from hybrid_runtime import job


def one(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code, and everything printed."""
    text = io.StringIO()
    with patch.dict(os.environ, environment), contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        code = job.main(arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
    return code, text.getvalue()


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    json.dump([one(case["arguments"], case["environment"]) for case in cases], sys.stdout)


if __name__ == "__main__":
    main()
