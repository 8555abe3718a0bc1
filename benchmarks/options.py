"""What every benchmark lets one choose, and which of its cases can run here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.blocks import Timing
from benchmarks.cases import QUICK, Case, Sizes
from benchmarks.results import RESULTS


def parser_of(name: str, description: str, *, blocks: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share; `blocks` is the default number of blocks of each side."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=description.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one rank per GPU, NCCL")
    parser.add_argument("--only", help="one case")
    parser.add_argument("--blocks", type=int, default=blocks, help="blocks of each side")
    return parser


def sizes_and_timing(options: argparse.Namespace) -> tuple[Sizes, Timing]:
    """The full sizes, or with --quick tiny ones and hardly any steps."""
    return (QUICK, Timing(1, 2, 0, 1)) if options.quick else (Sizes(), Timing(3, options.blocks, 1, 3))


def cases_here(options: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    """The cases that were asked for and that this machine can run.

    Raises:
        SystemExit: there is none; the message says why.
    """
    gpus = torch.cuda.device_count()
    if options.device == "cuda" and gpus == 0:
        raise SystemExit("--device cuda, but torch sees no GPU here; use --device cpu")
    known = [case.name for case in cases]
    if options.only not in (None, *known):
        raise SystemExit(f"there is no case {options.only!r}; known are {', '.join(known)}")
    chosen = [case for case in cases if options.only in (None, case.name)]
    possible = [case for case in chosen if options.device == "cpu" or case.world_size <= gpus]
    if not possible:
        raise SystemExit(f"{options.only} needs {chosen[0].world_size} GPUs, torch sees {gpus}; use --device cpu")
    return possible
