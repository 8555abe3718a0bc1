"""Whatever the bytes of a deployment file are: a deployment, or one error of the project in plain words."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid_runtime.deployment import Deployment, load_deployment, parse_deployment
from hybrid_runtime.errors import HybridRuntimeError, UsageError
from tests.deployment_files import CONFIGS, JARGON, refused, write


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "f.toml", 'name: is missing; add `name = "my-deployment"`'),
        (b"", "f.json", "is not valid JSON"),
        (b"\xff\xfe\x00", "f.toml", "is not UTF-8 text (byte 0); save the file as UTF-8"),
        (b"name = \x00", "f.toml", "is not valid TOML"),
        (b'{"name": "a"}', "f.toml", "its name must end in .json"),
        (b"[]", "f.json", "(whole file) = (a list of 0): must be a table, not a list"),
        (b'"name"', "f.json", "must be a table, not text"),
        (b"null", "f.json", "must be a table, not null"),
        (b"NaN", "f.json", "not an endless number"),
        (b'{"name": "a", "name": "b"}', "f.json", "'name': stands 2 times in one object; keep one of them"),
        (b'{"name": "a", "batch": {"b": 1, "b": 2}}', "f.json", "batch.b = 2: is an unknown key"),
        (b'name = "a"\nname = "b"', "f.toml", "is not valid TOML (Cannot overwrite a value"),
        (b'{"name": "a", "targets": {"compute_balance_pp": 1e999999}}', "f.json", "more than 30 digits"),
        (
            b'{"name": "a", "targets": {"compute_balance_pp": 1e99999999999999999999}}',
            "f.json",
            "not an endless number",
        ),
        (b'{"name": "a", "targets": {"compute_balance_pp": Infinity}}', "f.json", "not an endless number"),
        (b'name = "a"\n[targets]\ncompute_balance_pp = nan', "f.toml", "not an endless number"),
        (b'name = "a"\n[targets]\ncompute_balance_pp = 1e99999999999999999999', "f.toml", "not an endless number"),
        (b'name = "a"\n[workload]\nsteps = 2020-01-01', "f.toml", "not a date or time"),
        (b'name = "a"\n[workload]\nsteps = 2020-13-01', "f.toml", "is not valid TOML"),
        (b'name = "a"\nname.b = 1', "f.toml", "is not valid TOML"),
        (b"[" * 100_000, "f.json", "is nested too deeply"),
        (b"a = " + b"[" * 100_000, "f.toml", "is nested too deeply"),
        (b'{"a":' * 50_000, "f.json", "is nested too deeply"),
        (b"steps = " + b"9" * 5000, "f.toml", "a whole number has more than 4300 digits"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "f.json", "a whole number has more than 4300 digits"),
        (b'name = "a"\n[workload]\nsteps = 0x' + b"f" * 5000, "f.toml", "(a whole number of 20000 bits)"),
        (b'name = "a"\nx = ' + b"[" * 200 + b"]" * 200, "f.toml", "x = (a list of 1): is an unknown key"),
        (
            b'name = "a"\n[model]\nunits = "a:b"\noptions.x = ' + b"[" * 200 + b"]" * 200,
            "f.toml",
            "is nested too deeply",
        ),
        (b".".join([b"a"] * 1500) + b" = 1", "f.toml", ""),
        (b'{"name": "\\ud800"}', "f.json", r"\ud800 is half of a character"),
        (b'{"name": "a", "\\ud800": 1}', "f.json", "half of a character"),
        (b'{"name": "a", "declared": {"memory_distribution": {"\\ud800": "100%"}}}', "f.json", "half of a character"),
        (b'{"name": "a\\u0000b"}', "f.json", r"name = 'a\x00b'"),
        (b"#" * (1 << 20) + b"\n", "f.toml", "is larger than 1 MiB"),
    ],
)
def test_bytes_that_are_no_deployment(tmp_path: Path, content: bytes, name: str, words: str) -> None:
    assert words in refused(tmp_path, content, name)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    assert (
        load_deployment(write(tmp_path, b'\xef\xbb\xbfname = "a"\r\n[parallel]\r\ntp_degree = 2\r\n')).mesh.tp_degree
        == 2
    )
    assert load_deployment(write(tmp_path, b'\xef\xbb\xbf{"name": "a"}', "f.JSON")).name == "a"


def test_escaped_characters_of_json_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, rb'{"name": "a", "data": {"glob": "\\ud800 \ud83d\ude00.txt"}}', "f.json")
    assert load_deployment(path).data.glob == "\\ud800 \U0001f600.txt"


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "Is a directory"),
        (tmp_path / "absent.toml", "No such file"),
        (Path("/dev/zero"), "larger than 1 MiB"),
        (Path("a\0b"), "NUL"),
        (Path("x" * 5000), "File name too long"),
    ):
        with pytest.raises(UsageError, match=words):
            load_deployment(path)


# --- mutations --------------------------------------------------------------------------------------------------------


SEEDS = [path.read_bytes() for path in CONFIGS]
JUNK = st.sampled_from(
    [b"\x00", b"\xff", b"\xed\xa0\x80", b"[[", b"]]", b"{", b'"', b"1e999999", b"nan", b"2020-01-01", b"\n", b"="]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_bytes_raise_only_the_projects_errors(tmp_path: Path, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(seed)))
        end = data.draw(st.integers(start, min(len(seed), start + 12)))
        seed = seed[:start] + data.draw(JUNK | st.binary(max_size=4)) + seed[end:]
    accept_or_explain(write(tmp_path, seed, data.draw(st.sampled_from(["f.toml", "f.json"]))))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["1%", "2 GB", "a:b", "tiny", "1e9"])
    | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_structures_raise_only_the_projects_errors(tmp_path: Path, data: st.DataObject) -> None:
    values = json.loads(load_deployment(data.draw(st.sampled_from(CONFIGS))).canonical_json())
    for _ in range(data.draw(st.integers(1, 4))):
        table = values
        while nested := [value for value in table.values() if isinstance(value, dict) and value]:
            if not data.draw(st.booleans()):
                break
            table = data.draw(st.sampled_from(nested))
        key = data.draw(st.sampled_from(sorted(table)) | st.text(max_size=6))
        table[key] = data.draw(anything)
    accept_or_explain(write(tmp_path, json.dumps(values), "f.json"))


def accept_or_explain(path: Path) -> None:
    """Either a deployment that survives its canonical form, or one error of the project in plain words."""
    try:
        deployment = load_deployment(path)
    except HybridRuntimeError as refusal:
        message = str(refusal)
    else:
        message = ""
        check_round_trip(deployment)
    assert not JARGON.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", message)), message


def check_round_trip(deployment: Deployment) -> None:
    again = parse_deployment(json.loads(deployment.canonical_json(), parse_float=Decimal), source="again")
    assert again == deployment
