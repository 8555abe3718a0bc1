"""What the validator found -> problems in a person's words: key, value, what is expected there, and what to write.

Everything a sentence needs (types, ranges, choices, examples) is read from the JSON Schema of the deployment, so a new
key of a table explains itself.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from hybrid_runtime.errors import Problem

MAX_PROBLEMS = 100
CUSTOM = "hybrid_runtime"  # error type of the deployment's own rules: message and fix travel in the context
Schema = Mapping[str, Any]


def explain(errors: Sequence[Mapping[str, Any]], schema: Schema) -> list[Problem]:
    """Problems for pydantic's error list; `schema` is the JSON Schema of what was validated."""
    problems = [_problem(error, schema) for error in errors[:MAX_PROBLEMS]]
    if len(errors) > MAX_PROBLEMS:
        rest = len(errors) - MAX_PROBLEMS
        problems.append(Problem("(more)", "", f"{rest} further problems are not listed", "mend the listed ones first"))
    return problems


def shown(value: object) -> str:
    """A value from a file as short, printable text: control characters escaped, large things only described."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value) if value.bit_length() < 128 else f"(a whole number of {value.bit_length()} bits)"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case list() | tuple():
            return f"(a list of {len(value)})"
        case dict():
            return "(a table)"
        case _:
            return str(value)[:60]


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`; case, and - against _, are left aside. Empty if nothing is known."""
    names = {other.lower(): other for other in known}
    typed = name.lower().replace("-", "_")[:100]
    starts = [other for other in names if typed and other.startswith(typed)]
    close = starts or difflib.get_close_matches(typed, list(names), n=1, cutoff=0.0)
    return names[close[0]] if close else ""


def _problem(error: Mapping[str, Any], schema: Schema) -> Problem:
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(error["loc"], value, schema)
    place = _locate(schema, error["loc"])
    key = place.key or "(whole file)"
    if kind == CUSTOM:
        return Problem(key, shown(value), error["ctx"]["message"], error["ctx"]["fix"])
    if kind == "missing":
        return Problem(key, "", "is missing", f"add {_example(place)}")
    expected = " or ".join(map(_expected, place.branches))
    if kind == "literal_error" and isinstance(value, str):
        choices = [str(choice) for branch in place.branches for choice in _choices(branch)]
        return Problem(key, shown(value), f"must be {expected}", f"did you mean {nearest(value, choices)!r}?")
    actual = "" if kind in _RIGHT_TYPE else f", not {_kind_of(value)}"
    return Problem(key, shown(value), f"must be {expected}{actual}", f"write for example {_example(place)}")


_RIGHT_TYPE = {  # the type is right and the value is not: naming the type again would confuse
    "greater_than_equal",
    "greater_than",
    "less_than_equal",
    "less_than",
    "too_short",
    "too_long",
    "string_too_short",
    "string_too_long",
    "string_pattern_mismatch",
    "string_unicode",
}


def _unknown_key(loc: tuple[Any, ...], value: object, schema: Schema) -> Problem:
    name = str(loc[-1])
    table = _locate(schema, loc[:-1])
    known = [key for branch in table.branches for key in branch.get("properties", {})]
    homes = [home for home in _homes(name, schema) if home != table.key]
    if homes:
        fix = (
            f"it belongs in {' or '.join(f'[{home}]' if home else 'the lines above the first table' for home in homes)}"
        )
    else:
        where = f"[{table.key}]" if table.key else "the file"
        fix = f"did you mean {nearest(name, known)!r}? The keys of {where} are {', '.join(known)}"
    return Problem(".".join(filter(None, [table.key, _step(name)])), shown(value), "is an unknown key", fix)


def _homes(name: str, schema: Schema) -> list[str]:
    """The tables that have a key of this name; "" is the top level."""
    tables = {"": schema} | dict(schema["properties"])
    return [
        table
        for table, node in tables.items()
        if any(name in branch.get("properties", {}) for branch in _branches(schema, node))
    ]


# --- walking the schema -----------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an error is: its dotted key, the alternatives allowed there, and the nearest named key with its schema."""

    key: str
    branches: list[Schema]
    name: str
    field: Schema


def _locate(schema: Schema, loc: Sequence[Any]) -> _Place:
    node, field, name = schema, schema, ""
    key: list[str] = []
    for step in loc:
        for branch in _branches(schema, node):
            child, named = _child(branch, step)
            if child is not None:
                node = child
                field, name = (child, str(step)) if named else (field, name)
                key.append(_step(step))
                break
        # a step without a child is the validator's mark for one alternative of a union, not a key
    return _Place(".".join(key), list(_branches(schema, node)), name, field)


def _child(branch: Schema, step: object) -> tuple[Schema | None, bool]:
    """The schema below a step, and whether the step is a key that the schema names."""
    if isinstance(step, int):
        return branch.get("items"), False
    if step in branch.get("properties", {}):
        return branch["properties"][step], True
    below = branch.get("additionalProperties")
    return (below if isinstance(below, dict) else None), False


def _branches(schema: Schema, node: Schema) -> Iterator[Schema]:
    """The alternatives of a node, references followed and null left out; a decimal's text form is no alternative."""
    if "$ref" in node:
        yield from _branches(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
        return
    alternatives = node.get("anyOf") or node.get("oneOf")
    if not alternatives and node.get("type") != "null":
        yield node
    found = [branch for alternative in alternatives or () for branch in _branches(schema, alternative)]
    is_decimal = any(branch.get("type") == "number" for branch in found)
    yield from (branch for branch in found if not (is_decimal and branch.get("type") == "string"))


# --- wording ----------------------------------------------------------------------------------------------------------


def _step(step: object) -> str:
    text = str(step)
    return text if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", text) else shown(text)


def _choices(branch: Schema) -> list[Any]:
    return list(branch["enum"]) if "enum" in branch else [branch["const"]] if "const" in branch else []


def _expected(branch: Schema) -> str:
    """What may stand at a place, e.g. "a whole number of at least 1 and at most 1000"."""
    choices = _choices(branch)
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(repr(choice) for choice in choices)
    limits = " ".join(_range(branch, low, high, above, below, unit) for low, high, above, below, unit in _LIMITS)
    return f"{_TYPE_WORDS.get(branch.get('type', ''), 'a usable value')} {limits.strip()}".strip()


def _range(branch: Schema, low: str, high: str, above: str, below: str, unit: str) -> str:
    if low in branch and branch[low] == branch.get(high):
        return f"of exactly {branch[low]} {unit}"
    words = {low: "of at least", above: "above", high: "of at most", below: "below"}
    if len([name for name in words if name in branch]) == 2:
        words |= {low: "from", high: "to" if low in branch else "and at most", below: "and below"}
    bounds = [f"{text} {Decimal(branch[name]).normalize():f}" for name, text in words.items() if name in branch]
    return " ".join([*bounds, unit]).strip() if bounds else ""


_TYPE_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text in quotes",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}
_LIMITS = (
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", ""),
    ("minLength", "maxLength", "", "", "characters"),
    ("minItems", "maxItems", "", "", "items"),
    ("minProperties", "maxProperties", "", "", "keys"),
)


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case Decimal():
            return "a number with decimals" if value.is_finite() else "an endless number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a table"
        case datetime.date() | datetime.time():
            return "a date or time"
        case _:
            return "a binary float"


def _example(place: _Place) -> str:
    """How the key may be written in TOML, and what it means."""
    value = (place.field.get("examples") or [place.field.get("default")])[0]
    purpose = f" ({place.field['description']})" if place.name and "description" in place.field else ""
    if value is None:
        return f"`[{place.name or 'model'}]`{purpose}"
    if isinstance(value, dict):
        return (
            f"`{place.name} = {{ {', '.join(f'{key} = {json.dumps(item)}' for key, item in value.items())} }}`{purpose}"
        )
    is_number = any(branch.get("type") == "number" for branch in place.branches)
    return f"`{place.name} = {format(Decimal(value), 'f') if is_number else json.dumps(value)}`{purpose}"
