"""Ways to damage a file or a run folder. Each is a function of what it damages and a seed: same seed, same damage.

bytes    a byte changed, put in or taken out; the end cut off
lines    one cut, repeated or swapped with another
values   a JSON value replaced by a nasty one, a key renamed, dropped or added
files    removed, emptied, swapped, copied under another name, replaced by a folder or a link, made unreadable
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

DEEP = 20_000  # levels of brackets: more than any recursive reader stands
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 10**6, 10**9, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30), 10**400,
    0.0, -0.0, 0.1, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), "", " ", "0", "-1", "1e999", "NaN",
    "Infinity", "x", "x" * 5000, "\x00", "\ud800", "\u202e", "\x1b[2J", "../../etc/passwd", "/dev/null",
    "[red]x[/]", "%s", "{}",
    "34%", "100%", "0%", "33.333333333333333333%", "1/0", "trace", "planted", "measure", "2026-01-01",
    [], {}, [[]], [None], {"": 0},
    {"x": {"x": {}}}, [1, 2, 3], ["x"] * 50,
)  # fmt: skip

BYTE_DAMAGES = ("change", "put in", "take out", "cut", "bracket", "line cut", "line repeated", "lines swapped")
VALUE_DAMAGES = ("replace", "replace", "like", "like", "like", "drop", "rename", "add", "wrap", "scale")
Place = tuple[Any, ...]


def damaged_bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Content with one damage, and what it was."""
    where = chance.randrange(len(content) + 1)
    what = chance.choice(
        ("change", "put in", "take out", "cut", "bracket", "line cut", "line repeated", "lines swapped")
    )
    byte = bytes([chance.choice((chance.randrange(256), 0, 10, 34, 92, 255))])
    if what == "change":
        return content[:where] + byte + content[where + 1 :], f"byte {where} is {byte!r}"
    if what == "put in":
        return content[:where] + byte + content[where:], f"{byte!r} put in at byte {where}"
    if what == "take out":
        return content[:where] + content[where + 1 :], f"byte {where} taken out"
    if what == "cut":
        return content[:where], f"cut after {where} bytes"
    if what == "bracket":
        return content[:where] + b"[" * DEEP + content[where:], f"{DEEP} brackets put in at byte {where}"
    lines = content.splitlines(keepends=True) or [b""]
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    if what == "line cut":
        return b"".join(lines[:one] + lines[one + 1 :]), f"line {one + 1} cut out"
    if what == "line repeated":
        return b"".join(lines[: one + 1] + lines[one:]), f"line {one + 1} repeated"
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines), f"lines {one + 1} and {other + 1} swapped"


def damaged_values(values: Any, chance: random.Random) -> tuple[Any, str]:
    """A copy of JSON values with one place changed, and what was done."""
    changed = copy.deepcopy(values)
    place = chance.choice(list(_places(changed)))
    if not place:
        return chance.choice(NASTY), "everything replaced"
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    key, dotted = place[-1], ".".join(map(str, place))
    what = chance.choice(VALUE_DAMAGES)
    if what == "drop":
        del inside[key]
    elif what == "rename" and isinstance(inside, dict):
        inside[f"{key}{chance.choice(('', 's', '_', ' '))}x"] = inside.pop(key)
    elif what == "add" and isinstance(inside, dict):
        inside[chance.choice(("x", "", "name", "type", "raw"))] = chance.choice(NASTY)
    elif what == "like":
        inside[key] = copy.deepcopy(chance.choice([one for one in _all(changed) if type(one) is type(inside[key])]))
    elif what == "wrap":
        inside[key] = chance.choice(([inside[key]], {"x": inside[key]}, [inside[key], inside[key]]))
    elif what == "scale" and isinstance(inside[key], int) and not isinstance(inside[key], bool):
        inside[key] = inside[key] * chance.choice((-1, 2, 10**6)) + chance.choice((-1, 0, 1))
    else:
        what, inside[key] = "replace", chance.choice(NASTY)
    return changed, f"{dotted}: {what}" + (f" by {ascii(inside[key])[:60]}" if what == "replace" else "")


def _places(values: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    for key, inside in _items(values):
        yield from _places(inside, (*place, key))


def _all(values: Any) -> Iterator[Any]:
    """Every value in there, itself included."""
    yield values
    for _, inside in _items(values):
        yield from _all(inside)


def _items(values: Any) -> list[tuple[Any, Any]]:
    return list(values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ())


def damage_folder(folder: Path, chance: random.Random) -> str:
    """Does one damage to a run folder, and says what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing is left to damage"
    file = chance.choice(files)
    kind = chance.choice(("bytes", "bytes", "values", "values", "values", "files"))
    name = file.relative_to(folder)
    if kind == "files":
        return _damage_files(folder, file, files, chance)
    content = file.read_bytes()
    if kind == "values":
        changed = _damaged_line(content, chance)
        if changed is not None:
            file.write_bytes(changed[0])
            return f"{name}, {changed[1]}"
    damaged, what = damaged_bytes(content, chance)
    file.write_bytes(damaged)
    return f"{name}: {what}"


def _damaged_line(content: bytes, chance: random.Random) -> tuple[bytes, str] | None:
    """One JSON value of a JSON or JSON Lines file changed; None where there is no JSON."""
    lines = content.splitlines(keepends=True)
    parsed = _parsed(content)
    if parsed is not None:
        values, what = damaged_values(parsed, chance)
        return json.dumps(values).encode(), what
    number = chance.randrange(len(lines)) if lines else 0
    parsed = _parsed(lines[number]) if lines else None
    if parsed is None:
        return None
    values, what = damaged_values(parsed, chance)
    lines[number] = json.dumps(values).encode() + b"\n"
    return b"".join(lines), f"line {number + 1}, {what}"


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _damage_files(folder: Path, file: Path, files: Sequence[Path], chance: random.Random) -> str:
    other = chance.choice(files)
    name, second = file.relative_to(folder), other.relative_to(folder)
    ways: dict[str, Callable[[], object]] = {
        f"{name}: removed": file.unlink,
        f"{name}: emptied": lambda: file.write_bytes(b""),
        f"{name}: unreadable": lambda: file.chmod(0),
        f"{name}: is a folder": lambda: _instead(file, file.mkdir),
        f"{name}: is a link to nothing": lambda: _instead(file, lambda: file.symlink_to("nowhere")),
        f"{name}: is a link to itself": lambda: _instead(file, lambda: file.symlink_to(file.name)),
        f"{name} and {second}: swapped": lambda: _swap(file, other),
        f"{name}: also as copy{file.suffix}": lambda: shutil.copy(file, file.with_name(f"copy{file.suffix}")),
        f"{name}: also as {second}": lambda: file == other or shutil.copy(file, other),
        f"{file.parent.relative_to(folder)}: folder removed": lambda: shutil.rmtree(file.parent),
        f"{name.parent}/x: named so": lambda: file.rename(file.with_name("x")),
    }
    what = chance.choice(list(ways))
    ways[what]()
    return what


def _instead(file: Path, make: Callable[[], object]) -> None:
    """Something else of that name."""
    file.unlink()
    make()


def _swap(file: Path, other: Path) -> None:
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)
