"""Exact quantities: shares, percentages and byte sizes as written by people, read without a binary float in between.

`0.34 - 0.33 <= 0.01` is False in binary floating point. Nothing here, and nothing in the verifier, goes through a float
before a comparison: text -> Fraction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_SHARE = re.compile(r"\s*(\d{1,6}(?:\.\d{1,30})?)\s*%(?:_[a-z_]+)?\s*", re.ASCII)
_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*", re.ASCII)
_RATE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(GB/s)\s*", re.ASCII)
_FLOPS = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(GFLOP/s|TFLOP/s|PFLOP/s)\s*", re.ASCII)
_UNIT_FLOPS = {"GFLOP/s": 10**9, "TFLOP/s": 10**12, "PFLOP/s": 10**15}
_UNIT_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{prefix}iB": 1 << (10 * power) for power, prefix in enumerate("KMGT", start=1)
}


@dataclass(frozen=True, slots=True)
class Share:
    """A declared share of a whole.

    Attributes:
        text: exactly what the file says, e.g. "33.33%_computation".
        value: the share as a fraction of 1, e.g. 3333/10000.
        half_unit: half a unit in the last written place, as a fraction of 1: what rounding may hide.
    """

    text: str
    value: Fraction
    half_unit: Fraction


def parse_share(text: str) -> Share:
    """Reads "34%" or "33.33%_computation"; the % sign is mandatory.

    Raises:
        ValueError: the text has no % unit or is not a plain decimal number.
    """
    match = _SHARE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a share needs a number and a % unit, for example '33.33%', not {text!r}")
    places = len(match[1].partition(".")[2])
    return Share(text, Fraction(match[1]) / 100, Fraction(1, 2 * 100 * 10**places))


def sums_to_one(shares: Sequence[Share]) -> bool:
    """Whether shares add up to 100 % within what the rounding of each may hide (33/33/34 %: +-1.5)."""
    return abs(sum((share.value for share in shares), Fraction()) - 1) <= sum(
        (share.half_unit for share in shares), Fraction()
    )


def parse_bytes(text: str) -> int:
    """Reads "32 GB" (10**9) or "24 GiB" (2**30) as bytes.

    Raises:
        ValueError: the unit is missing or unknown: GB and GiB differ by 7 %, so none is assumed.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a size needs a number and a unit (GB = 10^9, GiB = 2^30), for example '32 GB', not {text!r}")
    return int(Fraction(match[1]) * _UNIT_BYTES[match[2]])


def parse_gb_per_s(text: str) -> Fraction:
    """Reads "300 GB/s" (one direction, 10**9 bytes) as GB/s.

    Raises:
        ValueError: the unit is missing.
    """
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a link rate needs the unit GB/s (one direction), for example '300 GB/s', not {text!r}")
    return Fraction(match[1])


def parse_flops_per_s(text: str) -> Fraction:
    """Reads "989.5 TFLOP/s" (10**12 FLOPs per second; a multiply-add is two) as FLOP/s.

    Raises:
        ValueError: the unit is missing or unknown, or the rate is zero.
    """
    match = _FLOPS.fullmatch(text) if isinstance(text, str) else None
    if match is None or Fraction(match[1]) == 0:
        raise ValueError(f"a peak rate needs a number above 0 and a unit, for example '312 TFLOP/s', not {text!r}")
    return Fraction(match[1]) * _UNIT_FLOPS[match[2]]


def decimal_text(value: Fraction, places: int = 4) -> str:
    """A fraction as decimal text for people; never read back into a comparison."""
    scaled = round(value * 10**places)
    sign, digits = ("-" if scaled < 0 else ""), f"{abs(scaled):0{places + 1}d}"
    if places == 0:
        return sign + digits
    text = f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")
    return text if text not in {"-0", ""} else "0"


def exact_text(value: Fraction) -> str:
    """A fraction without loss, "numerator/denominator" or an integer: what verdict.json stores beside the decimals."""
    return str(value)
