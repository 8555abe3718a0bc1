"""The published JSON Schemas (draft 2020-12) of what this project writes, descriptions taken from the docstrings.

hybrid-runtime schema --verdict --json hybrid_runtime/verdict.schema.json      the committed copy, made anew
"""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

from pydantic import TypeAdapter

from hybrid_runtime.nvml_records import NvmlFooter, NvmlHeader, NvmlInventory, NvmlSample
from hybrid_runtime.records import Footer, Header, StepRecord
from hybrid_runtime.verdict import SCHEMA_VERSION, Verdict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ATTRIBUTE = re.compile(r"^    (\w+(?:(?:, | / )\w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def verdict_schema() -> dict[str, Any]:
    """Of verdict.json."""
    schema = Verdict.model_json_schema(mode="serialization")
    return _published(schema, f"hybrid_runtime verdict {SCHEMA_VERSION}")


def records_schema() -> dict[str, Any]:
    """Of one line of records/rank*.jsonl or records/nvml-*.jsonl."""
    lines: TypeAdapter[Any] = TypeAdapter(
        Header | StepRecord | Footer | NvmlHeader | NvmlInventory | NvmlSample | NvmlFooter
    )
    return _published(lines.json_schema(mode="serialization"), "a line of hybrid_runtime's records")


def _published(schema: dict[str, Any], title: str) -> dict[str, Any]:
    for part in (schema, *schema.get("$defs", {}).values()):
        _describe(part)
    return {"$schema": DIALECT, **schema, "title": title}


def _describe(part: dict[str, Any]) -> None:
    """Moves what a class's docstring says of its attributes to the properties."""
    text, _, attributes = cleandoc(part.get("description", "")).partition("\n\nAttributes:\n")
    if text:
        part["description"] = " ".join(text.split())
    properties = part.get("properties", {})
    for match in _ATTRIBUTE.finditer(attributes):
        for name in re.split(r", | / ", match[1]):
            if name in properties:
                properties[name]["description"] = " ".join(match[2].split())
