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
    """Said before a long run, not after it; "-" is standard output.

    Raises:
        UsageError: the file that the option names cannot be written.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    why = "is a folder" if path.is_dir() else "" if path.parent.is_dir() else f"there is no folder {path.parent}"
    if not why and not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "permission denied"
    if why:
        other = "name another file" + (", or - for standard output" if option == "--json" else "")
        raise UsageError(f"{option} {target}: cannot be written ({why}); {other}")
