"""JUnit XML: every row a test case, every outcome as CI systems understand it, and no name that breaks the file."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from hybrid_runtime.report.junit import junit, xml_text
from hybrid_runtime.verdict import Outcome, Verdict
from tests.report import examples


def parsed(verdict: Verdict) -> ElementTree.Element:
    return ElementTree.fromstring(junit(verdict).encode())


def cases(root: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    for suite in root:
        for case in suite:
            yield str(case.get("classname")), case


def test_every_row_is_a_test_case_in_the_suite_of_its_kind() -> None:
    root = parsed(examples.verdict(self_test=examples.SELF_TEST))
    assert [suite.get("name") for suite in root] == ["demo: checks", "demo: claims", "demo: self-test"]
    counted = [(len(suite), suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped"))
               for suite in root]  # fmt: skip
    assert counted == [(4, "4", "1", "1", "1"), (4, "4", "1", "2", "0"), (4, "4", "1", "1", "0")]
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("12", "3", "4", "1")


@pytest.mark.parametrize(
    ("outcome", "tag", "type"),
    [
        (Outcome.PASS, None, None),
        (Outcome.FAIL, "failure", "fail"),
        (Outcome.INCONCLUSIVE, "error", "inconclusive"),
        (Outcome.ERROR, "error", "error"),
        (Outcome.NOT_APPLICABLE, "skipped", None),
    ],
)
def test_every_outcome_has_its_element(outcome: Outcome, tag: str | None, type: str | None) -> None:
    row = examples.CLAIMS[1].model_copy(update={"outcome": outcome})
    ((_, case),) = cases(parsed(examples.verdict(claims=(row,), static_checks=())))
    results = [element for element in case if element.tag != "system-out"]
    assert [element.tag for element in results] == ([tag] if tag else [])
    for element in results:
        assert element.get("type") == type
        assert "3 microbatches in flight" in str(element.get("message"))


def test_a_case_says_what_was_required_and_measured() -> None:
    found = dict(cases(parsed(examples.verdict())))["demo.claims.time_share_range"]
    text = str(found.findtext("system-out"))
    assert "required ≤ 1 pp, 0.42 pp [0.12, 0.71] on CPU, shared cores" in text
    assert "devices 0 and 4 set the range" in text


def test_names_that_xml_cannot_hold_are_written_out() -> None:
    name = "a<b>&\"'\x00\x0b\x1b[31m\ufffe]]>"
    root = parsed(examples.verdict(name=name))
    assert root.get("name") == "a<b>&\"'\\x00\\x0b\\x1b[31m\\ufffe]]>"
    assert xml_text("\ud800") == "\\ud800"


def test_a_verdict_without_rows_is_an_empty_file_and_not_a_broken_one() -> None:
    root = parsed(examples.verdict(claims=(), static_checks=(), counts={}))
    assert (len(root), root.get("tests")) == (0, "0")
