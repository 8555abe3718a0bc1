"""Messages about a deployment file: key, value, what is expected and what to write, in plain words, all at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import json_schema
from hybrid_runtime.deployment_errors import MAX_PROBLEMS
from tests.deployment_files import problem, problems, refused


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        # unknown keys name their neighbour, or the table they belong in
        ("colour", 3, "colour = 3: is an unknown key; did you mean"),
        ("tp_degree", 4, "tp_degree = 4: is an unknown key; it belongs in [parallel]"),
        ("parallel.global_batch_size", 4, "it belongs in [batch]"),
        (
            "parallel.tp",
            2,
            "parallel.tp = 2: is an unknown key; did you mean 'tp_degree'? The keys of [parallel] are tp_",
        ),
        ("parallel.Sequence-Parallel", True, "did you mean 'sequence_parallel'?"),
        ("targets.compute_balanc_pp", 1, "did you mean 'compute_balance_pp'?"),
        # wrong types name the right one, with an example
        (
            "parallel.pp_degree",
            "3",
            "must be a whole number from 1 to 65536, not text; write for example `pp_degree = 1`",
        ),
        ("parallel.pp_degree", True, "not true or false"),
        ("parallel.pp_degree", Decimal("1.5"), "not a number with decimals"),
        ("parallel.pp_degree", [1], "parallel.pp_degree = (a list of 1): must be a whole number"),
        ("parallel.sequence_parallel", 1, "must be true or false, not a whole number"),
        ("parallel", 3, "parallel = 3: must be a table, not a whole number"),
        (
            "name",
            3,
            'must be text in quotes from 1 to 100 characters, not a whole number; write for example `name = "my-d',
        ),
        ("targets.compute_balance_pp", "1%", "must be a number from 0 to 100, not text"),
        ("targets.compute_balance_pp", 0.1, "not a binary float"),
        # ranges
        ("parallel.tp_degree", 0, "parallel.tp_degree = 0: must be a whole number from 1 to 65536;"),
        ("parallel.tp_degree", 2**5000, "(a whole number of 5001 bits)"),
        ("optimizer.beta1", 1, "must be a number from 0 and below 1;"),
        ("optimizer.learning_rate", 0, "must be a number above 0 and at most 1000000000;"),
        ("optimizer.learning_rate", Decimal("1e999999"), "more than 30 digits"),
        (
            "optimizer.learning_rate",
            Decimal("NaN"),
            "must be a number above 0 and at most 1000000000, not an endless number",
        ),
        ("optimizer.eps", Decimal("-Infinity"), "not an endless number"),
        ("optimizer.weight_decay", Decimal("1e-31"), "more than 30 digits"),
        ("targets.compute_balance_pp", Decimal("100.0000001"), "100.0000001: must be a number from 0 to 100;"),
        ("targets.throughput_gain_percent", 2**200, "must be a number from 0 to 1000000000"),
        ("workload.seed", 2**63, "from 0 to 9223372036854775807"),
        ("name", "", "must be text in quotes from 1 to 100 characters;"),
        ("name", "a/../b", "letters, digits, '.', '_', '-' and spaces"),
        # choices
        (
            "data.source",
            "python_stdlib",
            "must be one of 'python-stdlib', 'text', 'tokens', 'corpus'; did you mean 'python-stdlib'?",
        ),
        ("data.source", 3, "must be one of 'python-stdlib', 'text', 'tokens', 'corpus', not a whole number"),
        ("pipeline.cuts", "evn", "must be one of 'even', 'balanced' or a list; did you mean 'even'?"),
        (
            "pipeline.cuts",
            3,
            'or a list, not a whole number; write for example `cuts = ["embedding..1.mlp", "2.attn..head"]`',
        ),
        (
            "baseline.kind",
            "dual",
            "must be one of 'single', 'tp_only', 'pp_only', 'dp_only', 'naive_pipeline'; did you",
        ),
        # units of measure
        ("hardware.memory_per_device", "32", "GB (10^9) and GiB (2^30) differ by 7 %; write '32 GB'"),
        ("hardware.min_link_bandwidth", "300 GB", "needs a number and the unit GB/s"),
        ("declared.utilisation", "0.95", "needs a number and a % unit"),
        ("declared.latency_reduction", "100%", "is 100 % or more, and no latency falls to nothing"),
        ("declared.computation_distribution", {}, "sums to 0 %"),
        ("declared.memory_distribution", {"a": "50.0%", "b": "49.0%"}, "sums to 99 %"),
        ("declared.device_assignment", {}, "must be a table of at least 1 keys"),
        # exports
        (
            "telemetry.tensorboard",
            3,
            "must be true or false or text in quotes, not a whole number; write for example `tensorboard = true`",
        ),
        ("telemetry.tensorboard", "", "is not a path"),
        ("export.folder", "", "is not a path"),
        ("telemetry.prometheus_textfile", True, "must be text in quotes, not true or false; write for example `prom"),
        ("telemetry.prometheus", "x", "did you mean 'prometheus_textfile'? The keys of [telemetry] are tensorboard, p"),
        ("telemetry.wandb", 3, "must be true or false or text in quotes, not a whole number"),
        ("telemetry.wandb", "a/b", "is no name of a project, which has 1 to 128 characters"),
        ("telemetry.peak_flops_per_device", "312", "needs a number above 0 and a unit; write '312 TFLOP/s'"),
        ("telemetry.peak_flops_per_device", "0 TFLOP/s", "needs a number above 0 and a unit; write '312 TFLOP/s'"),
        # the optimizer
        ("optimizer.schedule", "cosin", "did you mean 'cosine'?"),
        # checkpoints
        ("checkpoint.folder", "", "is not a path"),
        # the model
        ("model.preset", "tinny", "did you mean 'tiny'? Known are tiny, small,"),
        ("model.units", "my_model", "is not 'module:function'"),
        ("model.units", "my-model:units", "is not 'module:function'"),
        ("model.num_layers", 1001, "from 1 to 1000"),
        ("model.hf_config", "", "is not a path"),
        ("model.weights", "a\0b", "is not a path"),
    ],
)
def test_one_wrong_key_gives_one_sentence(key: str, value: object, sentence: str) -> None:
    if key.startswith("model.") and key not in ("model.preset", "model.units", "model.hf_config"):
        found = problems({"name": "test", "model": {"preset": "tiny", key.partition(".")[2]: value}})
        assert set(found) == {key}
        assert sentence in str(found[key])
    else:
        assert sentence in problem(key, value)


@pytest.mark.parametrize(
    ("key", "table", "sentence"),
    [
        ("checkpoint.keep", {"checkpoint": {"folder": "c", "keep": 0}}, "from 1 to 1000000"),
        ("checkpoint.evry", {"checkpoint": {"folder": "c", "evry": 5}}, "did you mean 'every'?"),
        ("checkpoint.folder", {"checkpoint": {}}, "is missing; add `folder = "),
        ("hardware.link_pairs.1", {"hardware": {"link_pairs": [[0, 1], [3]]}}, "must be a list of exactly 2 items;"),
        ("hardware.link_pairs.1", {"hardware": {"link_pairs": [[0, 1], 3]}}, "of exactly 2 items, not a whole number"),
        ("hardware.link_pairs.0.1", {"hardware": {"link_pairs": [[0, -1]]}}, "a whole number from 0"),
        ("pipeline.cuts.1", {"pipeline": {"cuts": ["a..b", 3]}}, "text in quotes, not a whole number"),
        ("declared.computation_distribution.g", {"declared": {"computation_distribution": {"g": "3"}}}, "% unit"),
        (
            "declared.computation_distribution.g",
            {"declared": {"computation_distribution": {"g": 3}}},
            "not a whole number",
        ),
        (
            "declared.requirements.total",
            {"declared": {"requirements": {"passed": 1, "failed": 1}}},
            "is missing; add `total",
        ),
        (
            "batch.microbatch_size",
            {"batch": {"global_batch_size": 1, "sequence_length": 1}},
            "add `microbatch_size = 2`",
        ),
        ("baseline.kind", {"baseline": {}}, 'is missing; add `kind = "single"`'),
        ("model", {"model": {}}, 'names no model; add one of preset = "tiny"'),
        ("model", {"model": {"preset": "tiny", "units": "a:b"}}, "has preset and units, but one model has one source"),
        ("model", {"model": {"units": "a:b", "num_layers": 3}}, "has num_layers beside units"),
        ("model", {"model": {"preset": "tiny", "options": {"a": 1}}}, "has options, which only a function"),
        ("data", {"data": {"source": "text"}}, "has the source 'text' but no path; add path"),
        ("data", {"data": {"path": "x"}}, "'python-stdlib' does not read"),
        ("optimizer", {"optimizer": {"schedule": "constant", "decay_steps": 9}}, "has decay_steps, where a constant"),
        ("parallel", {"parallel": {"tp_degree": 2**16, "pp_degree": 2}}, "makes 131072 ranks"),
        ("model.options", {"model": {"units": "a:b", "options": {"a": Decimal("NaN")}}}, "holds NaN"),
        ("model.options", {"model": {"units": "a:b", "options": {"a": 2**64}}}, "holds 18446744073709551616"),
        ("model.options", {"model": {"units": "a:b", "options": {"a": Decimal("1e400")}}}, "holds 1E+400"),
        ("model.options", {"model": {"units": "a:b", "options": {"a": "\ud800"}}}, r"holds '\ud800'"),
        ("parallel.'\\x1b[31m'", {"parallel": {"\x1b[31m": 1}}, "is an unknown key"),
    ],
)
def test_places_inside_tables_and_rules_between_keys(key: str, table: dict[str, Any], sentence: str) -> None:
    found = problems({"name": "test"} | table)
    assert set(found) == {key}
    assert sentence in str(found[key])


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        """
        colour = 3
        [model]
        presett = "tinny"
        units = "nope"
        options = { when = 2020-01-01 }
        dtype = "float23"
        preset = "tinny"
        [parallel]
        tp_degree = 0
        [data]
        source = "text"
        glob = 7
        [declared]
        utilisation = "0.95"
        """,
    )
    keys = re.findall(r"^  ([\w.]+)", message, re.MULTILINE)
    expected = "name colour model.presett model.units model.options model.dtype model.preset model parallel.tp_degree"
    assert sorted(keys) == sorted([*expected.split(), "data", "data.glob", "declared.utilisation"])
    assert message.startswith(f"{tmp_path / 'file.toml'}: 12 problems\n")


def test_a_file_full_of_problems_stays_readable() -> None:
    found = problems({"name": "test"} | {f"key{index}": 1 for index in range(MAX_PROBLEMS + 50)})
    assert len(found) == MAX_PROBLEMS + 1
    assert found["(more)"].message == "50 further problems are not listed"


def leaves(node: dict[str, Any], schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, child in node.get("properties", {}).items():
        options = [child, *child.get("anyOf", [])]
        references = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
        yield (*path, name)
        for reference in references:
            yield from leaves(schema["$defs"][reference], schema, (*path, name))


@pytest.mark.parametrize("path", list(leaves(json_schema(), json_schema())), ids=".".join)
def test_every_key_explains_a_wrong_value(path: tuple[str, ...]) -> None:
    """A complex number fits no key: each must say what it wants and show a line that could be written."""
    values: Any = 1j
    for name in reversed(path):
        values = {name: values}
    found = problems({"name": "test"} | values)
    sentence = str(found[".".join(path)])
    assert re.search(r"must be .+; write for example `.+`", sentence) or "holds 1j" in sentence, sentence
    if " = " in sentence.partition("write for example")[2]:
        assert f"`{path[-1]} = " in sentence
