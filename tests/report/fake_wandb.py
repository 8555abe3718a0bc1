"""A stand-in for the package wandb: the interface that is used of it, and what was asked of it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


class Error(Exception):
    """wandb's base class of what it raises itself."""


class Run:
    """What `wandb.init` returns."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.metrics: dict[str, str] = {}
        self.logged: list[dict[str, float]] = []
        self.summary: dict[str, str] = {}
        self.exit_code: int | None = None
        self.problem: Exception | None = None

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.metrics[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        if self.problem is not None:
            raise self.problem
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def install(monkeypatch: pytest.MonkeyPatch, problem: Exception | None = None) -> list[Run]:
    """Puts it in the package's place; returns the runs that will be begun. With a problem, none can."""
    runs: list[Run] = []

    def init(**settings: Any) -> Run:
        if problem is not None:
            raise problem
        runs.append(Run(settings))
        return runs[-1]

    module = ModuleType("wandb")
    module.__dict__.update(Error=Error, init=init)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs
