"""Where a stored verdict says something else than the one that its records give again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybrid_runtime.verdict import Verdict, overridden

# What may honestly differ when somebody else judges the same records elsewhere.
_OF_THE_JUDGE = ("tool_version", "provenance.tool")


def same_judge(before: Verdict, now: Verdict) -> bool:
    """Whether two verdicts were made by the same rules and version, so that every figure must be the same."""
    return (before.ruleset, before.tool_version) == (now.ruleset, now.tool_version)


def differences(before: Verdict, now: Verdict) -> list[str]:
    """Dotted places in which a stored verdict differs from a new one, in the file's order: "claims.0.measured.point".

    Its overrides are applied to the new one first: they change the exit code, and say so.
    """
    again = overridden(now, before.overrides)
    return [
        place
        for place in _places(before.model_dump(mode="json"), again.model_dump(mode="json"), "")
        if not place.startswith(_OF_THE_JUDGE)
    ]


def outcomes_changed(before: Verdict, now: Verdict) -> list[str]:
    """Rows that another version of the rules judges otherwise, in words."""
    then, again = _outcomes(before), _outcomes(now)
    return [
        f"{name}: {then.get(name, 'no row')} then, {again.get(name, 'no row')} now"
        for name in dict.fromkeys([*then, *again])
        if then.get(name) != again.get(name)
    ]


def _outcomes(verdict: Verdict) -> dict[str, str]:
    checks = {check.id: check.outcome.value for check in verdict.static_checks}
    return checks | {claim.id: claim.outcome.value for claim in verdict.claims}


def _places(before: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inside = f"{place}.{key}" if place else str(key)
            if key in before and key in now:
                yield from _places(before[key], now[key], inside)
            else:
                yield inside
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _places(one, other, f"{place}.{index}")
    elif before != now:
        yield place
