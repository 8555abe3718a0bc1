"""The command `convert`: a model's folder into another one."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from hybrid_runtime.cli_output import console_for
from hybrid_runtime.errors import UsageError


class Dtype(enum.StrEnum):
    """What the numbers can become."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Hugging Face folder: config.json and safetensors")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="the new folder; it appears whole or not at all")],
    dtype: Annotated[Dtype | None, typer.Option(help="of the weights; default: what they are")] = None,
    max_file_size: Annotated[str, typer.Option(metavar="SIZE", help="of one file of weights")] = "5 GB",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Write a Llama, Mistral, Qwen2 or Qwen3 folder anew, with other file sizes or numbers; nobody holds the model.

    Every tensor of the model must be there in its right shape, so what was converted is known to be whole.
    """
    from hybrid_runtime.weights.convert import convert as convert_folder

    limit = _bytes(max_file_size)
    with _progress(quiet) as bar:
        task = bar.add_task(str(target), total=None)
        done = convert_folder(
            source,
            target,
            dtype=None if dtype is None else dtype.value,
            max_file_bytes=limit,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )
    words = f"{target}: {done.tensors} tensors, {done.tensor_bytes:,} bytes, in {done.files} file(s)"
    console_for(None).print(words, markup=False, highlight=False, soft_wrap=True)


def _bytes(text: str) -> int:
    from hybrid_runtime import exact

    try:
        found = int(exact.parse_bytes(text))
    except ValueError:
        raise UsageError(f"--max-file-size {text!r} needs a number and a unit; write for example '5 GB'") from None
    if found < 1:
        raise UsageError(f"--max-file-size {text!r} leaves no room; write for example '5 GB'")
    return found


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    rest = (TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, *rest, console=console, transient=True, disable=quiet or not console.is_terminal)
