"""The command `convert`: folders of models and checkpoints of trainings into each other."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from hybrid_runtime.cli_output import console_for
from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import CONFIG

if TYPE_CHECKING:
    from hybrid_runtime.weights.convert import Converted

TOKENIZER = "tokenizer.json"


class Dtype(enum.StrEnum):
    """What the numbers can become."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="a Hugging Face folder; or a checkpoint, or a folder of them: the newest"
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="the new folder; it appears whole or not at all")],
    to_checkpoint: Annotated[
        bool, typer.Option("--to-checkpoint", help="TARGET becomes a folder of checkpoints that `run --resume` takes")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="of a checkpoint: where config.json and tokenizer are taken from"),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="of the weights; default: what they are, or came as")] = None,
    max_file_size: Annotated[str, typer.Option(metavar="SIZE", help="of one file of weights")] = "5 GB",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Write a Llama, Mistral, Qwen2 or Qwen3 model anew; nobody holds it whole.

    A Hugging Face folder becomes another one, with other file sizes or numbers, or with --to-checkpoint one to begin a
    training from. The checkpoint of a training on any mesh becomes a Hugging Face folder: of a bfloat16 training, the
    float32 master copies where float32 is asked for, or is what the model came as. Every tensor of the model must be
    there in its right shape, and every byte of a checkpoint be the one that was written.
    """
    limit = _bytes(max_file_size)
    convert_it = _direction(source, to_checkpoint=to_checkpoint, like=like)
    with _progress(quiet) as bar:
        task = bar.add_task(str(target), total=None)
        done = convert_it(
            target,
            dtype=None if dtype is None else dtype.value,
            max_file_bytes=limit,
            progress=lambda written, total: bar.update(task, completed=written, total=total),
        )
    words = f"{target}: {done.tensors} tensors, {done.tensor_bytes:,} bytes, in {done.files} file(s)"
    console = console_for(None)
    console.print(words, markup=False, highlight=False, soft_wrap=True)
    if not to_checkpoint and not (target / TOKENIZER).exists():
        console.print("no tokenizer.json went with it: none was found where the model came from", soft_wrap=True)


def _direction(source: Path, *, to_checkpoint: bool, like: Path | None) -> Callable[..., Converted]:
    """What makes of the source what is asked for."""
    from hybrid_runtime.checkpoint.folders import find

    checkpoint = find(source)
    if checkpoint is None and like is not None:
        raise UsageError(f"--like is for checkpoints, and {source} holds none that is whole; drop it")
    if checkpoint is not None and to_checkpoint:
        raise UsageError(f"{source} holds checkpoints already: --to-checkpoint is for Hugging Face folders; drop it")
    if like is not None and not (like / CONFIG).is_file():
        raise UsageError(f"--like {like}: holds no {CONFIG}; name the Hugging Face folder that the model came from")
    if checkpoint is not None:
        from hybrid_runtime.checkpoint.to_hugging_face import to_hugging_face

        return partial(to_hugging_face, checkpoint, like=like)
    if to_checkpoint:
        from hybrid_runtime.checkpoint.from_hugging_face import from_hugging_face

        return partial(from_hugging_face, source)
    from hybrid_runtime.weights.convert import convert as convert_folder

    return partial(convert_folder, source)


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
