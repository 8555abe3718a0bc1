"""A verdict as JUnit XML, which CI systems show as tests: every static check, claim and self-test is a test case.

    FAIL            <failure>
    INCONCLUSIVE    <error type="inconclusive">   a skipped test is shown as a success by some systems
    ERROR           <error type="error">
    NOT_APPLICABLE  <skipped>

Format: the common subset of the Apache Ant JUnit schema (testsuites, testsuite, testcase, failure, error, skipped).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from hybrid_runtime.report.cells import check_cells, claim_cells, claim_how, claim_why, printable
from hybrid_runtime.report.method_cells import self_check_cells
from hybrid_runtime.report.prediction_cells import claim_modelled
from hybrid_runtime.verdict import Claim, Outcome, Verdict

_NOT_IN_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")  # beside the control characters that `printable` writes out


class _Case(NamedTuple):
    """One test case: `words` says what was found, `out` how."""

    id: str
    name: str
    outcome: Outcome
    words: str
    out: str = ""


def junit(verdict: Verdict) -> str:
    """The whole verdict, one suite per kind of row; a kind without rows has none."""
    suites = {
        "checks": [_Case(row.id, row.requirement, row.outcome, check_cells(row)[2]) for row in verdict.static_checks],
        "claims": [_claim_case(row) for row in verdict.claims],
        "self-test": [
            _Case(row.id, row.text, row.outcome, self_check_cells(row)[3], self_check_cells(row)[2])
            for row in verdict.self_test
        ],
    }
    root = ElementTree.Element("testsuites", name=xml_text(verdict.name))
    for kind, cases in suites.items():
        if cases:
            root.append(_suite(verdict.name, kind, cases))
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def xml_text(text: str) -> str:
    """Text without what XML 1.0 cannot hold, not even escaped: such characters are written out."""
    return _NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", printable(text))


def _claim_case(claim: Claim) -> _Case:
    _, text, required, measured, hardware = claim_cells(claim)
    out = f"required {required}, {measured} on {hardware}\n{claim_how(claim)}\n{claim_modelled(claim)}"
    return _Case(claim.id, f"{text} ({required})", claim.outcome, claim_why(claim), out.strip())


def _suite(name: str, kind: str, cases: Sequence[_Case]) -> ElementTree.Element:
    outcomes = [case.outcome for case in cases]
    counts = {
        "tests": len(cases),
        "failures": outcomes.count(Outcome.FAIL),
        "errors": outcomes.count(Outcome.INCONCLUSIVE) + outcomes.count(Outcome.ERROR),
        "skipped": outcomes.count(Outcome.NOT_APPLICABLE),
    }
    suite = ElementTree.Element("testsuite", name=xml_text(f"{name}: {kind}"))
    suite.attrib |= {key: str(value) for key, value in counts.items()}
    for case in cases:
        element = ElementTree.SubElement(
            suite, "testcase", classname=xml_text(f"{name}.{kind}.{case.id}"), name=xml_text(case.name)
        )
        element.extend(_results(case))
    return suite


def _results(case: _Case) -> Iterator[ElementTree.Element]:
    words = xml_text(case.words)
    kinds = {
        Outcome.FAIL: ("failure", "fail"),
        Outcome.INCONCLUSIVE: ("error", "inconclusive"),
        Outcome.ERROR: ("error", "error"),
    }
    if case.outcome in kinds:
        tag, type = kinds[case.outcome]
        result = ElementTree.Element(tag, message=words, type=type)
        result.text = xml_text(case.out) or words
        yield result
        return
    if case.outcome is Outcome.NOT_APPLICABLE:
        yield ElementTree.Element("skipped", message=words)
    out = ElementTree.Element("system-out")
    out.text = "\n".join(text for text in (words, xml_text(case.out)) if text)
    yield out
