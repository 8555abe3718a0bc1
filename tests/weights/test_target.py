"""A folder that is written appears whole or not at all."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.weights.layout import lay_out
from hybrid_runtime.weights.target import Target, files_to_copy
from hybrid_runtime.weights.tensor_file import Block

LAYOUT = lay_out({"a": ("F32", (2, 2)), "b": ("F32", (3,))})


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_it_has_its_name_when_all_is_written(tmp_path: Path) -> None:
    target = Target(tmp_path / "deep" / "new", LAYOUT)
    target.begin()
    with closing(target.writer("model.safetensors")) as writer:
        writer.write("a", Block(0, 2, 0, 2), memoryview(bytes(range(16))))
    assert not (tmp_path / "deep" / "new").exists()
    (tmp_path / "tokens").write_text("words")
    target.finish({"model_type": "llama"}, {"tokenizer.json": tmp_path / "tokens"})
    names = {path.name for path in (tmp_path / "deep" / "new").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_what_a_crash_left_is_written_anew(tmp_path: Path) -> None:
    first = Target(tmp_path / "new", LAYOUT)
    first.begin()  # and never finished
    again = Target(tmp_path / "new", LAYOUT)
    again.refuse_unusable()
    again.begin()
    again.finish({}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_that_cannot_be_copied_leaves_no_folder(tmp_path: Path) -> None:
    target = Target(tmp_path / "new", LAYOUT)
    copied = {"tokenizer.json": tmp_path / "gone"}
    with pytest.raises(EnvironmentProblem, match="new: cannot be written"), target.appearing({}, copied):
        assert [path.name for path in tmp_path.iterdir()] == [".new.partial"]
    assert not list(tmp_path.iterdir())


def test_unusable_folders_are_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "used").mkdir()
    Target(tmp_path / "used", LAYOUT).refuse_unusable()  # empty
    (tmp_path / "used" / "file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("used", "file", "link"):
        with pytest.raises(UsageError, match=f"{name}: already exists; name another folder"):
            Target(tmp_path / name, LAYOUT).refuse_unusable()
    with pytest.raises(UsageError, match="names no new folder"):
        Target(Path(".."), LAYOUT).refuse_unusable()
    with pytest.raises(EnvironmentProblem, match=r"cannot be written \(Not a directory\)"):
        Target(tmp_path / "file" / "new", LAYOUT).refuse_unusable()
    monkeypatch.setattr("shutil.disk_usage", lambda path: Disk(100, 80, 20))
    with pytest.raises(EnvironmentProblem, match=r"0.00 GB are to be written and 0.00 GB are free on the disk"):
        Target(tmp_path / "new", LAYOUT).refuse_unusable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "used"]


def test_what_goes_with_a_model_comes_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for folder, names in (("a", ["merges.txt"]), ("b", ["merges.txt", "vocab.json", "weights.bin"])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    found = files_to_copy([tmp_path / "a", tmp_path / "b"], tmp_path / "tok.json")
    expected = {"merges.txt": "a/merges.txt", "vocab.json": "b/vocab.json", "tokenizer.json": "tok.json"}
    assert found == {name: tmp_path / path for name, path in expected.items()}
