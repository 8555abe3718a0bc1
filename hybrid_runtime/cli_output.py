"""Where the commands' output goes: tables to stdout, unless JSON does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hybrid_runtime.errors import UsageError

Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="also write the figures as JSON; - for stdout")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PLAN.JSON", help="follow this plan: its degrees, stages, schedule and lists"),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", metavar="FOLDER", help="scalars for TensorBoard, in a sub-folder per run"),
]
Prometheus = Annotated[
    Path | None,
    typer.Option(
        "--prometheus", metavar="FOLDER", help="figures for node_exporter's textfile collector, which reads it"
    ),
]
Wandb = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="a run of Weights & Biases, in this project")
]


def console_for(json_file: str | None) -> Console:
    """The console for tables."""
    return Console(stderr=json_file == "-")


def write_json(target: str | None, values: object) -> None:
    """Writes figures to a file, to stdout for "-", nowhere for None.

    Raises:
        UsageError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(values, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    write_text("--json", Path(target), text)


def write_text(option: str, path: Path, text: str) -> None:
    """Writes the file that an option names.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{option} {path}: cannot be written ({problem.strerror}); name another file") from None


def refuse_unwritable(option: str, target: str | Path | None) -> None:
    """Said before a long run, not after it; "-" is standard output. Every option that names a file to write asks here.

    Raises:
        UsageError: the file that the option names cannot be written.
    """
    if target is None or target == "-":
        return
    why = _unwritable(Path(target))
    if why:
        other = "name another file" + (", or - for standard output" if option == "--json" else "")
        raise UsageError(f"{option} {target}: cannot be written ({why}); {other}")


def _unwritable(path: Path) -> str:
    """Why a file cannot be written; "" if it can be, which is tried: permissions alone do not tell on every disk."""
    try:
        if path.is_dir():
            return "is a folder"
        if not path.parent.is_dir():
            return f"there is no folder {path.parent}"
        if path.exists():
            path.open("ab").close()
        else:
            path.touch(exist_ok=False)
            path.unlink()
        replaced = path.is_file() or not path.exists()  # by a file that was written beside it, then renamed
        return "" if not replaced or os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written"
    except OSError as problem:
        return str(problem.strerror)
