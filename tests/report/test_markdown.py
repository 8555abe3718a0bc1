"""The Markdown form: whole tables whatever the names hold, the reasons in words, and what the verdict rests on."""

from __future__ import annotations

import re

import pytest

from hybrid_runtime.report.markdown import escaped, markdown
from hybrid_runtime.verdict import RULESET
from tests.report import examples


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_every_table_has_equally_many_cells_in_each_row() -> None:
    tables = [block.splitlines() for block in markdown(examples.verdict()).split("\n\n") if block.startswith("|")]
    assert len(tables) == 6  # claims, compute, memory, sides, checks, raw records
    for table in tables:
        assert len({len(cells_of(line)) for line in table}) == 1
        assert set(cells_of(table[1])) == {" --- "}


def test_names_cannot_open_tags_links_code_or_cells() -> None:
    text = markdown(examples.verdict())
    assert r"\[red\]x&lt;/td&gt;\|\`\*\\x1b\[31m" in text
    assert "</td>" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("time_share_range", "time_share_range"),
        ("_emphasis_", r"\_emphasis\_"),
        ("two\nlines", "two<br>lines"),
        ("a & b", "a &amp; b"),
        ("[x](y)", r"\[x\](y)"),
    ],
)
def test_escaping(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_it_begins_with_the_verdict_in_words_and_the_rows_that_decided_it() -> None:
    head = markdown(examples.verdict()).partition("## ")[0]
    assert head.startswith("# ❌ FAIL: demo\n\n2 passed, 2 failed, 3 inconclusive, 1 not applicable of 8 requirements;")
    assert "- **FAIL** memory balance: required ≤ 1 pp, measured 7.9 pp (exact): stage 0 holds" in head
    assert f"not measured: oversubscribed: {examples.LONG_REASON}" in head
    assert "compute balance" not in head


def test_it_ends_with_what_it_rests_on() -> None:
    tail = markdown(examples.verdict()).partition("## What this rests on")[2]
    for shown in ("0.1.0", RULESET, "d" * 64, "p" * 64, "a" * 64, "records/rank0.jsonl", "2 raw record files"):
        assert shown in tail


def test_a_check_without_a_run_has_no_empty_sections() -> None:
    text = markdown(
        examples.verdict(claims=(), devices=(), sides=(), warnings=(), raw=(), plan_fingerprint=None, counts={})
    )
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Checks before any process starts", "What this rests on"]
    assert "- plan none" in text
