"""Kinds of values of a deployment file (numbers, shares, sizes, paths, options) and the base of its tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hybrid_runtime import exact
from hybrid_runtime.deployment_errors import CUSTOM, shown

MAX_RANKS = 2**16
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?", re.ASCII)


def refuse(message: str, fix: str) -> PydanticCustomError:
    """The error of one of the deployment's own rules: what is wrong, and what to do."""
    return PydanticCustomError(CUSTOM, "{message}; {fix}", {"message": message, "fix": fix})


def _decimal(value: object) -> object:
    """Integers and decimal text (how a Decimal is written to JSON) become Decimal; the rest is left to be refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value) if value.bit_length() < 128 else Decimal("Infinity")
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return Decimal(value)
    if isinstance(value, Decimal) and value.is_finite() and not _is_writable(value):
        raise refuse("has more than 30 digits before or after the point", "write fewer digits, for example 0.001")
    return value


def _is_writable(value: Decimal) -> bool:
    """Whether the number can be written out without an exponent and read again."""
    return -31 < value.adjusted() < 30 and _NUMBER.fullmatch(format(value, "f")) is not None


def _plain(value: Decimal) -> str:
    """The one text of a number: 1, 1.0 and 1e0 are equal and must give equal fingerprints."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if value == 0 else text


def _share(text: str) -> str:
    return _parsed(exact.parse_share, text, "needs a number and a % unit", "write for example '33.33%'")


def _reduction(text: str) -> str:
    if exact.parse_share(_share(text)).value >= 1:
        raise refuse(
            "is 100 % or more, and no latency falls to nothing", "write a reduction below 100 %, such as '40%'"
        )
    return text


def _size(text: str) -> str:
    return _parsed(
        exact.parse_bytes, text, "needs a number and a unit: GB (10^9) and GiB (2^30) differ by 7 %", "write '32 GB'"
    )


def _link_rate(text: str) -> str:
    return _parsed(exact.parse_gb_per_s, text, "needs a number and the unit GB/s, one direction", "write '300 GB/s'")


def _flops_rate(text: str) -> str:
    return _parsed(exact.parse_flops_per_s, text, "needs a number above 0 and a unit", "write '312 TFLOP/s'")


def _parsed(parser: Callable[[str], object], text: str, message: str, fix: str) -> str:
    try:
        parser(text)
    except ValueError:
        raise refuse(message, fix) from None
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise refuse("is not a path", "name a file or folder; a relative one starts at the current folder")
    return text


def _option(value: object, depth: int = 0) -> Any:
    """Keyword arguments of a user's function: what JSON can hold; decimals become floats, for nothing compares them."""
    if depth > 8:
        raise refuse("is nested too deeply", "use at most eight levels of tables and lists")
    match value:
        case None | bool():
            return value
        case str() if not re.search("[\ud800-\udfff]", value):
            return value
        case int() if value.bit_length() < 64:
            return value
        case Decimal() | float() if math.isfinite(value):
            return float(value)
        case list():
            return [_option(item, depth + 1) for item in value]
        case dict():
            return {_option(key, depth + 1): _option(item, depth + 1) for key, item in value.items()}
    raise refuse(
        f"holds {shown(value)}, which cannot be passed on", "use text, numbers of 64 bits, true, false and lists"
    )


# The range stands before the reader, so that the JSON Schema shows it.
_READ, _WRITE = BeforeValidator(_decimal), PlainSerializer(_plain, when_used="json")
Positive = Annotated[int, Field(ge=1, le=10**9)]
Degree = Annotated[int, Field(ge=1, le=MAX_RANKS)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Percent = Annotated[Decimal, Field(ge=0, le=100), _READ, _WRITE]
PositiveNumber = Annotated[Decimal, Field(gt=0, le=10**9), _READ, _WRITE]
NonNegativeNumber = Annotated[Decimal, Field(ge=0, le=10**9), _READ, _WRITE]
Fraction01 = Annotated[Decimal, Field(ge=0, lt=1), _READ, _WRITE]
UpToHalf = Annotated[Decimal, Field(gt=0, le=0.5), _READ, _WRITE]
ShareText = Annotated[str, AfterValidator(_share)]
ReductionText = Annotated[str, AfterValidator(_reduction)]
SizeText = Annotated[str, AfterValidator(_size)]
LinkRateText = Annotated[str, AfterValidator(_link_rate)]
FlopsRateText = Annotated[str, AfterValidator(_flops_rate)]
OptionTable = Annotated[dict[str, Any], BeforeValidator(_option)]
PathText = Annotated[str, AfterValidator(_path)]
DevicePair = Annotated[list[Count], Field(min_length=2, max_length=2)]
Cuts = Annotated[
    Annotated[Literal["even", "balanced"], Tag("word")] | Annotated[list[str], Tag("stages")],
    Discriminator(lambda value: "stages" if isinstance(value, list) else "word"),
]

EmbeddingRows = Annotated[
    Annotated[Literal["equal"], Tag("word")] | Annotated[list[Count], Field(min_length=1), Tag("rows")],
    Discriminator(lambda value: "rows" if isinstance(value, list) else "word"),
]


class Table(BaseModel):
    """Base of every table of the file: unknown keys are errors, nothing is coerced, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Rules between keys, as (message, fix): `given` are the keys that are set, `values` what is known of them."""
        return iter(())

    @model_validator(mode="after")
    def _obey_rules(self) -> Table:
        for message, fix in self.rules(given_keys(self.__dict__), self.__dict__):
            raise refuse(message, fix)
        return self


def given_keys(values: Mapping[str, Any]) -> list[str]:
    """The keys that are set."""
    return [name for name, value in values.items() if value is not None]
