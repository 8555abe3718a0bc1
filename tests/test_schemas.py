"""The published schemas: current, described, and true of what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import hybrid_runtime
from tests.commands import command
from tests.report import examples
from tests.verifier.runs import whole

COPY = Path(hybrid_runtime.__file__).parent / "verdict.schema.json"


def schema(*options: str) -> dict[str, Any]:
    done = command("schema", *options)
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_committed_copy_is_current() -> None:
    advice = "make it anew: hybrid-runtime schema --verdict --json hybrid_runtime/verdict.schema.json"
    assert json.loads(COPY.read_text()) == schema("--verdict"), advice


def test_verdicts_and_records_are_what_the_schemas_say(tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    verdicts = jsonschema.Draft202012Validator(schema("--verdict"))
    real = json.loads((run / "verdict.json").read_text())
    verdicts.validate(real)
    verdicts.validate(examples.verdict().model_dump(mode="json"))
    assert not verdicts.is_valid(real | {"verdict": "MAYBE"})
    assert not verdicts.is_valid(real | {"more": 1})
    lines = jsonschema.Draft202012Validator(schema("--records"))
    for path in run.rglob("*.jsonl"):
        for line in path.read_text().splitlines()[:40]:
            lines.validate(json.loads(line))
    assert not lines.is_valid({"type": "footer", "steps": "x"})


def test_descriptions_come_from_the_docstrings() -> None:
    found = schema("--verdict")
    assert found["properties"]["overrides"]["description"].startswith("options that changed the exit code")
    measured = found["$defs"]["Measured"]["properties"]
    assert measured["lower"]["description"] == measured["upper"]["description"]
    assert "Attributes:" not in json.dumps(found)


@pytest.mark.parametrize("options", [("--verdict", "--records")])
def test_one_schema_at_a_time(options: tuple[str, ...]) -> None:
    done = command("schema", *options)
    assert done.code == 2
    assert "give --verdict or --records, not both" in done.err
