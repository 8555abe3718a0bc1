"""The deployment: exact values, round trips, the schema for editors, and how quickly it is there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.deployment import json_schema, load_deployment, parse_deployment
from hybrid_runtime.errors import UsageError
from tests.deployment_files import CONFIGS, write

jsonschema: Any = importlib.import_module("jsonschema")  # has no type hints


def test_decimals_are_exact_in_every_spelling(tmp_path: Path) -> None:
    for text in ("1", "1.0", "1.00", "1e0", "10e-1", "1_0.0e-1"):
        found = load_deployment(write(tmp_path, f'name = "a"\n[targets]\ncompute_balance_pp = {text}')).targets
        assert found.compute_balance_pp == Decimal(1)
    third = "0.333333333333333333333333333333"
    found = load_deployment(write(tmp_path, f'name = "a"\n[targets]\ncompute_balance_pp = {third}')).targets
    assert f"{found.compute_balance_pp}" == third


def test_equal_deployments_have_equal_fingerprints(tmp_path: Path) -> None:
    spellings = ["1", "1.0", "1e0"]
    files = [
        write(tmp_path, f'name = "a"\n[targets]\ncompute_balance_pp = {text}', f"{text}.toml") for text in spellings
    ]
    assert len({load_deployment(path).fingerprint for path in files}) == 1
    other = write(tmp_path, 'name = "a"\n[targets]\ncompute_balance_pp = 1.0000001')
    assert load_deployment(other).fingerprint != load_deployment(files[0]).fingerprint


def test_where_figures_go_is_no_part_of_what_is_compared(tmp_path: Path) -> None:
    """Neither the records' fingerprint nor the one that a second machine's must equal: its folder may be another."""
    plain = load_deployment(write(tmp_path, 'name = "a"'))
    for telemetry in ('tensorboard = true\nprometheus_textfile = "x"', 'tensorboard = "runs/all"'):
        telling = load_deployment(write(tmp_path, f'name = "a"\n[telemetry]\n{telemetry}'))
        assert telling.telemetry != plain.telemetry
        assert telling.fingerprint == plain.fingerprint
        again = load_deployment(write(tmp_path, telling.canonical_json(), "again.json"))
        assert again.telemetry == telling.telemetry


def test_newer_keys_with_their_defaults_leave_the_fingerprint_as_it_was() -> None:
    """Old records are judged with their deployment's fingerprint: this one is of version 0.1.0 before such keys."""
    values: dict[str, Any] = {
        "name": "a",
        "model": {"preset": "tiny"},
        "parallel": {"dp_degree": 2},
        "pipeline": {"schedule": "gpipe"},
        "batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 8},
        "workload": {"steps": 3},
        "optimizer": {"warmup_steps": 1},
        "data": {"source": "text", "path": "x"},
    }
    before = "442ade8682be029be54fe85e0cedaed63ac8d192b681d156ed79e9ac196f7cb6"
    assert parse_deployment(values, source="test").fingerprint == before
    for table, keys in (
        ("optimizer", {"schedule": "linear"}),
        ("optimizer", {"decay_steps": 7}),
        ("optimizer", {"master_weights": False}),
        ("parallel", {"shard_optimizer": True}),
        ("pipeline", {"recompute": "full"}),
        ("workload", {"validation_batches": 9}),
        ("data", {"pack": True, "source": "corpus"}),
        ("faults", {"non_finite": "skip"}),
    ):
        changed = values | {table: values.get(table, {}) | keys}
        assert parse_deployment(changed, source="test").fingerprint != before, keys


def test_a_file_without_checkpoints_keeps_its_fingerprint(tmp_path: Path) -> None:
    """So that runs are judged again that were made before there were any."""
    plain = load_deployment(write(tmp_path, 'name = "a"'))
    old = write(tmp_path, plain.canonical_json().replace('"checkpoint": null, ', ""), "old.json")
    assert "checkpoint" not in old.read_text()
    assert load_deployment(old).fingerprint == plain.fingerprint
    kept = load_deployment(write(tmp_path, 'name = "a"\n[checkpoint]\nfolder = "c"'))
    assert kept.checkpoint is not None
    assert kept.checkpoint.every == 100
    assert kept.fingerprint != plain.fingerprint


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_survive_the_canonical_form(path: Path, tmp_path: Path) -> None:
    deployment = load_deployment(path)
    again = load_deployment(write(tmp_path, deployment.canonical_json(), "deployment.json"))
    assert again == deployment
    assert again.canonical_json() == deployment.canonical_json()
    assert again.fingerprint == deployment.fingerprint


numbers = st.decimals(0, 100, allow_nan=False, places=30) | st.integers(0, 100).map(Decimal)
options = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    limit=numbers, rate=st.decimals("0.000001", 1000, places=12), options=st.dictionaries(st.text(max_size=5), options)
)
def test_round_trip_is_exact(limit: Decimal, rate: Decimal, options: dict[str, Any]) -> None:
    values = {
        "name": "test",
        "model": {"units": "my_model.parts:units", "options": options},
        "optimizer": {"learning_rate": rate},
        "targets": {"compute_balance_pp": limit, "utilisation_percent": limit},
        "pipeline": {"cuts": ["a..b", "c"]},
    }
    first = parse_deployment(values, source="first")
    second = parse_deployment(json.loads(first.canonical_json(), parse_float=Decimal), source="second")
    assert second == first
    assert second.canonical_json() == first.canonical_json()
    assert second.targets.compute_balance_pp == limit


def test_a_deployment_does_not_change() -> None:
    deployment = parse_deployment({"name": "test"}, source="test")
    with pytest.raises(ValueError, match="frozen"):
        deployment.name = "other"  # type: ignore[misc]


def test_shape_comes_from_preset_file_or_nowhere(tmp_path: Path) -> None:
    def shape(**model: Any) -> Any:
        return parse_deployment({"name": "test", "model": model}, source="test").shape

    tiny = shape(preset="tiny", num_layers=2, rope_theta=Decimal("5000.5"))
    assert (tiny.num_layers, tiny.rope_theta, tiny.hidden_size) == (2, 5000.5, 96)
    assert shape(units="a:b") is None
    assert parse_deployment({"name": "test"}, source="test").shape is None
    with pytest.raises(UsageError, match="No such file"):
        shape(hf_config=str(tmp_path))


def test_num_microbatches() -> None:
    def microbatches(batch: int, micro: int, replicas: int) -> int:
        sizes = {"global_batch_size": batch, "microbatch_size": micro, "sequence_length": 1}
        values = {"name": "test", "batch": sizes, "parallel": {"dp_degree": replicas}}
        return parse_deployment(values, source="test").num_microbatches

    assert [microbatches(16, 2, 2), microbatches(16, 3, 1), microbatches(1, 2, 1)] == [4, 0, 0]


# --- schema -----------------------------------------------------------------------------------------------------------


def test_schema_is_valid_and_accepts_what_the_parser_accepts() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in CONFIGS:
        validator.validate(json.loads(load_deployment(path).canonical_json()))  # decimals as strings
    validator.validate({"name": "a", "targets": {"compute_balance_pp": 1.5}})  # decimals as numbers
    assert not validator.is_valid({"name": "a", "targets": {"compute_balance_pp": 101}})
    assert not validator.is_valid({"name": "a", "colour": 1})
    assert not validator.is_valid({"name": "a", "pipeline": {"cuts": "evn"}})


def test_examples_of_the_schema_are_accepted() -> None:
    """What messages and editors propose must itself be valid."""
    schema = json_schema()
    for table, reference in schema["$defs"].items():
        for name, node in reference["properties"].items():
            for example in node.get("examples", []):
                validator = jsonschema.Draft202012Validator(node | {"$defs": schema["$defs"]})
                validator.validate(example), (table, name)


@pytest.mark.alone
def test_importing_and_validating_is_quick() -> None:
    code = (
        "import time; start = time.perf_counter()\n"
        "from pathlib import Path\n"
        "from hybrid_runtime.deployment import load_deployment\n"
        f"load_deployment(Path({str(CONFIGS[0])!r}))\n"
        "print(time.perf_counter() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.4
