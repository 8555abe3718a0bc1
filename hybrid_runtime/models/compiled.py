"""`model.compile`: torch.compile of what units compute between their parallel layers.

    column  ->  [ rotary | swiglu ]  ->  row        [ ] one fused kernel each way instead of one per operation
    x  ->  [ norm ]  ->  column

A unit is not compiled as a whole: the backward of a parallel layer leaves weight gradients in a queue and waits for
other ranks, which no compiled graph may hold. Between these layers stand pure functions of tensors, and each is handed
to torch.compile on its own. The autograd functions around them, and so what is kept for the backward, stay as they are:
memory is the same to the byte, and so are recomputation, pieces, and the split of the backward into I and W.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from hybrid_runtime.errors import EnvironmentProblem


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function of tensors, compiled for every combination of shapes at its first call with it."""
    run: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return run


def refuse_without_compiler(device: torch.device) -> None:
    """Whether this machine can compile for the device; asked before anything is built.

    Raises:
        EnvironmentProblem: it lacks what torch.compile calls.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise EnvironmentProblem(
                "model.compile needs triton for a GPU, and it is not installed; install it, or remove model.compile"
            )
        return
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(map(shutil.which, names)):
        raise EnvironmentProblem(
            f"model.compile needs a C++ compiler for the CPU, and none of {', '.join(names)} is on the PATH; install "
            "one, name it in CXX, or remove model.compile"
        )
