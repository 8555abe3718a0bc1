"""One colour per thing, in every picture of the HTML report.

The hues are Okabe and Ito's ("Color Universal Design", 2008), which people with a colour vision deficiency tell apart;
what is no work of a device is grey and hatched. A thing of light and dark pages has a colour for each.
"""

from __future__ import annotations

from typing import NamedTuple


class Colour(NamedTuple):
    """A thing's colour on light and on dark paper."""

    light: str
    dark: str


def _both(colour: str) -> Colour:
    return Colour(colour, colour)


# Names are those of CSS variables: "forward" is var(--forward) in the page.
COLOURS: dict[str, Colour] = {
    "forward": _both("#56b4e9"),
    "prefill": _both("#2f8fc4"),
    "decode": _both("#1f9e8a"),
    "backward": _both("#e69f00"),
    "input-gradient": _both("#f2d24b"),
    "weight-gradient": _both("#009e73"),
    "lookup": _both("#8c6bd0"),
    "row-gradients": _both("#c06a9a"),
    "optimizer": _both("#cc79a7"),
    "compute": Colour("#0072b2", "#3d9fdb"),
    "communication": _both("#d55e00"),
    "host": Colour("#7a5fb0", "#a48bd8"),
    "bubble": Colour("#b9bec6", "#59616c"),
    "parameters": Colour("#4a4aa5", "#9090e6"),
    "candidate": Colour("#0072b2", "#3d9fdb"),
    "baseline": Colour("#8a6d3b", "#c5a46b"),
    "ink": Colour("#1b1f24", "#e7eaee"),
    "muted": Colour("#59616c", "#a4acb8"),
    "paper": Colour("#ffffff", "#14171c"),
    "panel": Colour("#f5f6f8", "#1d2229"),
    "line": Colour("#d4d8de", "#363d47"),
    "pass": Colour("#0a7f52", "#3ecf95"),
    "fail": Colour("#c02f1d", "#ff7a66"),
    "open": Colour("#8a5a00", "#f0b429"),
}
