"""What a benchmark leaves behind: a JSON file with everything, and a section of RESULTS.md for people.

Every result names its hardware, versions, commit and command; none names a host or a path.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def environment(arguments: Sequence[str], name: str) -> dict[str, Any]:
    """Where, with what and how a benchmark was run."""
    return {
        "command": " ".join(["scripts/bench", name, *arguments]),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "driver": _driver(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 2),
    }


def save(name: str, result: dict[str, Any], section: str, folder: Path = RESULTS) -> Path:
    """Writes `<folder>/<name>-<date>.json` and appends the section to RESULTS.md (in a folder of one's own: there)."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    file = folder / f"{name}-{stamp}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    where = result["environment"]
    lines = [
        f"\n## {name}, {where['date_utc']}\n",
        section,
        "",
        f"- hardware: {where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB"
        + "".join(f", {gpu}" for gpu in where["gpus"]),
        f"- {where['system']}, Python {where['python']}, torch {where['torch']}, driver {where['driver']}",
        f"- commit {where['commit']}, command `{where['command']}`, load before {where['load_before']}",
        f"- raw: {file.name if folder != RESULTS else f'results/{file.name}'}",
    ]
    with (folder / "RESULTS.md" if folder != RESULTS else RESULTS.parent / "RESULTS.md").open("a") as report:
        report.write("\n".join(lines) + "\n")
    return file


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text too."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in [header, *rows]]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if k != 1 else f"|-{line}-|" for k, line in enumerate(lines))


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown (no git repository)"
    return f"{commit} with local changes" if git("status", "--porcelain", "--untracked-files=no") else commit


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _driver() -> str:
    if not torch.cuda.is_available():
        return "n/a (torch sees no GPU)"
    import pynvml

    pynvml.nvmlInit()
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    return str(version)


def arguments_given() -> list[str]:
    """What was typed after the benchmark's name, with folders left out."""
    return [word for word in sys.argv[1:] if "/" not in word]


if __name__ == "__main__":
    print(json.dumps(environment([], "environment"), indent=1))
