"""How this project's tests write deployment files and look at the messages about them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import load_deployment, parse_deployment
from hybrid_runtime.errors import DeploymentError, Problem, UsageError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").iterdir())
JARGON = re.compile(
    r"Input should|Value error|instance of|Decimal\(|pydantic|BaseModel|Extra inputs|Field required|NoneType|literal\[|"
    r"list\[|validation error|errors\.pydantic|Traceback|<class|set_int_max",
)


def write(folder: Path, content: str | bytes, name: str = "file.toml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(folder: Path, content: str | bytes, name: str = "file.toml") -> str:
    """The message for a file that must be refused, checked for the house rules of messages."""
    with pytest.raises(UsageError) as found:
        load_deployment(write(folder, content, name))
    message = str(found.value)
    assert found.value.exit_code == 2
    assert str(folder / name) in message
    assert not JARGON.search(message), message
    assert message.isprintable() or set(filter(lambda c: not c.isprintable(), message)) == {"\n"}
    return message


def problems(values: object) -> dict[str, Problem]:
    with pytest.raises(DeploymentError) as found:
        parse_deployment(values, source="test")
    assert not JARGON.search(str(found.value)), str(found.value)
    return {problem.key: problem for problem in found.value.problems}


def problem(key: str, value: object) -> str:
    """The one problem of a file in which only this key is wrong."""
    *tables, name = key.split(".")
    values: dict[str, Any] = {name: value}
    for table in reversed(tables):
        values = {table: values}
    found = problems({"name": "test"} | values)
    assert set(found) == {key}, found
    return str(found[key])
