"""Tensor files in parts, against the safetensors library; damaged ones are refused in a sentence."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.weights import tensor_file
from hybrid_runtime.weights.layout import header_of, lay_out
from hybrid_runtime.weights.tensor_file import Block, TensorReader, TensorWriter, blocks, create_file, read_entries

MATRIX = np.arange(35, dtype="<f4").reshape(7, 5)
VECTOR = np.arange(9, dtype="<f8")


def test_blocks_are_read_from_the_librarys_file(tmp_path: Path) -> None:
    save_file({"m": MATRIX, "v": VECTOR, "s": np.float32([[[1, 2], [3, 4]]])}, tmp_path / "x")
    with closing(TensorReader(tmp_path / "x")) as reader:
        for name, block, expected in (
            ("m", Block(0, 7, 0, 5), MATRIX),
            ("m", Block(2, 4, 0, 5), MATRIX[2:4]),
            ("m", Block(1, 6, 2, 4), MATRIX[1:6, 2:4]),
            ("v", Block(3, 8, 0, 1), VECTOR[3:8]),
            ("s", Block(0, 1, 0, 4), np.float32([1, 2, 3, 4])),
        ):
            into = np.zeros_like(expected)
            reader.read(name, block, memoryview(into.reshape(-1).view(np.uint8)))
            np.testing.assert_array_equal(into, expected)


def test_blocks_cover_a_part_once_and_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", 40)
    assert blocks((7, 5), 4) == [Block(0, 2, 0, 5), Block(2, 4, 0, 5), Block(4, 6, 0, 5), Block(6, 7, 0, 5)]
    assert blocks((7, 5), 4, dim=1, part=(1, 3)) == [Block(0, 5, 1, 3), Block(5, 7, 1, 3)]
    assert blocks((7, 50), 4, part=(5, 7)) == [Block(5, 6, 0, 50), Block(6, 7, 0, 50)]
    assert blocks((9,), 8, part=(0, 6)) == [Block(0, 5, 0, 1), Block(5, 6, 0, 1)]


def test_the_library_reads_what_several_writers_wrote(tmp_path: Path) -> None:
    layout = lay_out({"v": ("F16", (3,)), "m": ("F32", (7, 5))})
    ((file, entries),) = layout.files.items()
    create_file(tmp_path / file, header_of(entries), layout.file_bytes(file))
    for columns in ((0, 2), (2, 5)):
        with closing(TensorWriter(tmp_path / file, entries)) as writer:
            part = np.ascontiguousarray(MATRIX[:, columns[0] : columns[1]])
            writer.write("m", Block(0, 7, *columns), part.reshape(-1).view(np.uint8).data)
            writer.write("v", Block(1, 2, 0, 1), np.float16([4]).view(np.uint8).data)
    found = load_file(tmp_path / file)
    np.testing.assert_array_equal(found["m"], MATRIX)
    np.testing.assert_array_equal(found["v"], np.float16([0, 4, 0]))
    assert all(entry.offset % tensor_file.ITEM_BYTES[entry.dtype] == 0 for entry in entries.values())


def test_files_are_as_few_as_the_limit_allows() -> None:
    sizes = {f"t{k}": ("F32", (100,)) for k in range(5)} | {"huge": ("F32", (1000,)), "last": ("BF16", (1,))}
    layout = lay_out(sizes, 1500)
    groups = [list(entries) for entries in layout.files.values()]
    assert groups == [["t0", "t1"], ["t2", "t3"], ["t4"], ["huge"], ["last"]]
    assert next(iter(layout.files)) == "model-00001-of-00005.safetensors"
    assert all(layout.file_bytes(file) <= 1500 for file, names in layout.files.items() if "huge" not in names)
    index = json.loads(str(layout.index()))
    assert index["metadata"]["total_size"] == layout.tensor_bytes == 5 * 400 + 4000 + 2
    assert index["weight_map"]["huge"] == "model-00004-of-00005.safetensors"
    assert lay_out(sizes).index() is None


def damaged(path: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "is not a readable safetensors file"),
        (b"[]", "is not a readable safetensors file"),
        (b"[" * 100_000, "is not a readable safetensors file"),
        ({"x": 3}, "is not a readable safetensors file"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "is not a readable safetensors file"),
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"x of F32 and shape \[3\] has 8 bytes"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "it ends after .* bytes, inside x"),
        ({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}, "offsets 8, 0"),
        ({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "has the shape"),
        ({"x": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, "is not a readable safetensors file"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        read_entries(damaged(tmp_path / "x", header))
    assert str(tmp_path / "x") in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its 0 bytes hold no header"),
        (b"\xff" * 40, "its 40 bytes hold no header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull fetches the file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_entries(tmp_path / "x")


def test_a_file_that_shrinks_and_a_folder_that_goes_are_named(tmp_path: Path) -> None:
    save_file({"m": MATRIX}, tmp_path / "x")
    with closing(TensorReader(tmp_path / "x")) as reader:
        (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-4])
        with pytest.raises(UsageError, match="it ends inside m"):
            reader.read("m", Block(0, 7, 0, 5), memoryview(bytearray(140)))
    with pytest.raises(EnvironmentProblem, match="must be on a disk that all machines share"):
        TensorWriter(tmp_path / "gone" / "x", {})
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        create_file(tmp_path / "gone" / "x", b"", 0)
