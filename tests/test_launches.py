"""Every launch of a deployment is counted beside its run folder, whatever became of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hybrid_runtime.launches import LIST, Launches, note_launch
from hybrid_runtime.run_folder import RunFolder


def launch(parent: Path, folder: str, name: str = "demo", fingerprint: str = "f") -> Launches:
    return note_launch(RunFolder(parent / folder).create(), name, fingerprint)


def test_launches_are_counted_by_deployment(tmp_path: Path) -> None:
    assert launch(tmp_path, "a") == Launches()
    assert launch(tmp_path, "b", fingerprint="g") == Launches((), ("a",))
    assert launch(tmp_path, "c", name="other") == Launches()
    shutil.rmtree(tmp_path / "a")
    assert launch(tmp_path, "d") == Launches(("a",), ("b",))
    assert launch(tmp_path, "d") == Launches(("a",), ("b",)), "a restart is no other launch"
    lines = [json.loads(line) for line in (tmp_path / LIST).read_text().splitlines()]
    assert [line["run_folder"] for line in lines] == ["a", "b", "c", "d", "d"]
    assert set(lines[0]) == {"run_folder", "name", "deployment_fingerprint", "started_utc"}


def test_a_side_of_a_run_is_no_launch(tmp_path: Path) -> None:
    launch(tmp_path, "run")
    for side in ("run/baseline", "run/baselines/tp_only"):
        assert launch(tmp_path, side).unknown == "a side of another run folder"
    assert len((tmp_path / LIST).read_text().splitlines()) == 1


def test_damage_and_a_list_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / LIST).write_bytes(b'not json\n[1]\n\xff\n{"name": "demo"}\n')
    assert launch(tmp_path, "a") == Launches((), ("None",))
    (tmp_path / LIST).unlink()
    (tmp_path / LIST).mkdir()
    assert launch(tmp_path, "b").unknown == f"{LIST} cannot be written (Is a directory)"
