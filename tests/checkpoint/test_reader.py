"""What was written is read, on any layout, or refused by name; nothing damaged is read as good."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.boxes import Box
from hybrid_runtime.checkpoint.manifest import MANIFEST, Manifest, read_manifest, with_indexes
from hybrid_runtime.checkpoint.rank_file import CHUNK_BYTES, Item, RankFile
from hybrid_runtime.checkpoint.reader import check_whole, restore
from hybrid_runtime.errors import CheckpointError, UsageError
from tests.commands import ROOT, environment

WHOLE = torch.arange(8 * 6, dtype=torch.float32).view(8, 6)
SHORT = torch.arange(3, dtype=torch.bfloat16)


def box(name: str, whole: torch.Tensor, *ranges: tuple[int, int]) -> Box:
    return Box(
        name, tuple(whole.shape), tuple(start for start, _ in ranges), tuple(stop - start for start, stop in ranges)
    )


def cut(name: str, whole: torch.Tensor, *ranges: tuple[int, int]) -> Item:
    values = whole
    for dim, (start, stop) in enumerate(ranges):
        values = values.narrow(dim, start, stop - start)
    return Item(box(name, whole, *ranges), values)


def write(folder: Path, ranks: list[list[Item]], step: int = 3) -> Path:
    """A checkpoint as these ranks would write it."""
    partial = folders.partial(folder, step)
    partial.mkdir(parents=True)
    indexes = []
    for rank, items in enumerate(ranks):
        file = RankFile(items, pinned=False)
        file.fill(items)
        indexes.append(file.write(partial / f"rank{rank}.safetensors"))
        assert (partial / f"rank{rank}.safetensors").stat().st_size == file.num_bytes
    empty = Manifest(
        step=step,
        training={},
        deployment_fingerprint="",
        plan_fingerprint="",
        mesh=(1, 1, 1),
        versions={},
        written_utc="",
    )
    folders.commit(folder, with_indexes(empty, indexes), keep=2)
    return folder / folders.name_of(step)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two ranks: columns on one side, and types of two widths."""
    return write(
        tmp_path,
        [
            [cut("short", SHORT, (0, 3)), cut("whole", WHOLE, (0, 8), (0, 2)), cut("count", torch.tensor(7))],
            [cut("whole", WHOLE, (0, 4), (2, 6)), cut("whole", WHOLE, (4, 8), (2, 6))],
        ],
    )


def wanted(name: str, whole: torch.Tensor, *ranges: tuple[int, int]) -> Item:
    """A place for a box inside a larger tensor."""
    there = box(name, whole, *ranges)
    return Item(there, torch.full(there.sizes, -1, dtype=whole.dtype))


def test_any_box_comes_back(checkpoint: Path) -> None:
    manifest = check_whole(checkpoint)
    items = [
        wanted("whole", WHOLE, (0, 8), (0, 6)),
        wanted("whole", WHOLE, (3, 5), (1, 4)),
        wanted("short", SHORT, (1, 3)),
        wanted("count", torch.tensor(7)),
    ]
    restore(checkpoint, manifest, items)
    assert torch.equal(items[0].values, WHOLE)
    assert torch.equal(items[1].values, WHOLE[3:5, 1:4])
    assert torch.equal(items[2].values, SHORT[1:])
    assert items[3].values == 7


def test_any_tool_for_safetensors_reads_the_files(checkpoint: Path) -> None:
    with safe_open(checkpoint / "rank1.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"whole[0,2]", "whole[4,2]"}
        assert torch.equal(file.get_tensor("whole[4,2]"), WHOLE[4:, 2:])


def test_chunks_are_short_enough_to_be_read_one_by_one(tmp_path: Path) -> None:
    large = torch.arange(5 * 2**20, dtype=torch.float32).view(-1, 2**10)
    path = write(tmp_path, [[cut("large", large, (0, 5 * 2**10), (0, 2**10))]])
    chunks = read_manifest(path).tensors["large"].chunks
    assert [chunk.length for chunk in chunks] == [CHUNK_BYTES, 4 * 2**20]
    item = wanted("large", large, (4000, 4200), (5, 9))
    restore(path, read_manifest(path), [item])
    assert torch.equal(item.values, large[4000:4200, 5:9])


def test_every_flipped_bit_is_found_and_its_file_named(checkpoint: Path) -> None:
    chance = random.Random(5)
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for at in {0, 7, 8, len(content) - 2, *(chance.randrange(len(content) - 1) for _ in range(40))}:
            damaged = bytearray(content)
            damaged[at] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"{path.name}: .*resume"):
                check_whole(checkpoint)
        path.write_bytes(content)
    check_whole(checkpoint)


def test_the_tensor_that_is_damaged_is_named(checkpoint: Path) -> None:
    path = checkpoint / "rank0.safetensors"
    content = path.read_bytes()
    at = read_manifest(checkpoint).tensors["short"].chunks[0].start
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(CheckpointError, match=rf"rank0\.safetensors: is damaged: bytes {at} to {at + 6}, of short"):
        restore(checkpoint, read_manifest(checkpoint), [wanted("short", SHORT, (0, 3))])
    restore(checkpoint, read_manifest(checkpoint), [wanted("whole", WHOLE, (0, 8), (0, 6))])


def test_missing_and_cut_files_are_named(checkpoint: Path) -> None:
    path = checkpoint / "rank1.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"rank1\.safetensors: is damaged: it has \d+ bytes, and \d+ were written"
    ):
        read_manifest(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"rank1\.safetensors: cannot be read \(No such file"):
        read_manifest(checkpoint)
    (checkpoint / MANIFEST).write_text("[]")
    with pytest.raises(CheckpointError, match="is damaged: it is not a manifest"):
        read_manifest(checkpoint)


@pytest.mark.parametrize("changes", [{"file": "../rank0.safetensors"}, {"start": -1}, {"length": 10**9}])
def test_a_chunk_outside_the_files_is_refused(changes: dict[str, Any], checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)
    saved = manifest.tensors["short"]
    forged = saved.model_copy(update={"chunks": (saved.chunks[0]._replace(**changes),)})
    text = manifest.model_copy(update={"tensors": manifest.tensors | {"short": forged}}).to_json()
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="a chunk of short lies in no file of the checkpoint"):
        read_manifest(checkpoint)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (wanted("other", SHORT, (0, 3)), "holds no tensor other"),
        (wanted("short", SHORT.float(), (0, 3)), r"short is BF16 of shape \[3\], and this model has torch.float32"),
        (wanted("whole", WHOLE[:, :5], (0, 8), (0, 5)), r"of shape \[8, 6\], and this model has .* of shape \[8, 5\]"),
    ],
)
def test_another_models_checkpoint_is_refused(item: Item, words: str, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=words):
        restore(checkpoint, read_manifest(checkpoint), [item])


LOADER = """
import resource, sys
from pathlib import Path
import torch
from hybrid_runtime.checkpoint.boxes import Box
from hybrid_runtime.checkpoint.manifest import read_manifest
from hybrid_runtime.checkpoint.rank_file import Item
from hybrid_runtime.checkpoint.reader import restore

rows, columns = map(int, sys.argv[2:])
whole = (rows, columns)
half = torch.zeros(rows, columns // 2)  # what a rank of two holds: half of every row, of every chunk
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
item = Item(Box("large", whole, (0, columns // 2), tuple(half.shape)), half)
restore(Path(sys.argv[1]), read_manifest(Path(sys.argv[1])), [item])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, float(half[-1, -1]))
"""


def test_loading_needs_a_chunk_of_memory_beside_what_it_fills(tmp_path: Path) -> None:
    rows, columns = 2**12, 2**13  # 128 MiB
    large = torch.zeros(rows, columns)
    large[-1, -1] = 5
    path = write(tmp_path, [[cut("large", large, (0, rows), (0, columns))]])
    del large
    done = subprocess.run(
        [sys.executable, "-c", LOADER, path, str(rows), str(columns)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    extra, last = done.stdout.split()
    assert float(last) == 5
    assert int(extra) <= 3 * CHUNK_BYTES
