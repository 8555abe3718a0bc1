"""TP against PP as a picture of characters: how long requests wait, and how many tokens a second are made.

tokens/s
   3009 |            c  b          a letter for each mesh; a capital one is the plan
        |   A  b
   1400 |a
        +------------------
        0.2 s          1.9 s  median latency
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from hybrid_runtime.predicted_serving import TradeOff
from hybrid_runtime.report.cells import duration_text, rate_text

WIDTH, HEIGHT = 60, 12


def mesh_of(one: TradeOff) -> str:
    """A trade-off's mesh in words."""
    return f"tp {one.tp_degree} x pp {one.pp_degree}"


def trade_off_lines(trade_offs: Sequence[TradeOff], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The picture, line by line, and what its letters mean; nothing where there is one mesh only.

    Args:
        trade_offs: the plan first.
    """
    meshes = list(dict.fromkeys(map(mesh_of, sorted(trade_offs, key=lambda one: one.tp_degree))))
    if len(meshes) < 2:
        return []
    letters = dict(zip(meshes, ascii_lowercase, strict=False))
    latencies, rates = [one.latency_ns for one in trade_offs], [float(one.tokens_per_s) for one in trade_offs]
    rows = [[" "] * width for _ in range(height)]
    for number in reversed(range(len(trade_offs))):  # the plan last, on top of others
        letter = letters.get(mesh_of(trade_offs[number]), "z")
        column = _place(latencies[number], latencies, width)
        rows[height - 1 - _place(rates[number], rates, height)][column] = letter if number else letter.upper()
    top, bottom = rate_text(max(rates)), rate_text(min(rates))
    margin = max(len(top), len(bottom))
    names = [top, *[""] * (height - 2), bottom]
    left, right = duration_text(min(latencies) / 1e9), duration_text(max(latencies) / 1e9)
    return [
        "tokens/s",
        *(f"{name:>{margin}} |{''.join(row).rstrip()}" for name, row in zip(names, rows, strict=True)),
        f"{'':{margin}} +{'-' * width}",
        f"{'':{margin}}  {left}{right:>{max(1, width - len(left))}}",
        "; ".join(f"{letter} {mesh}" for mesh, letter in letters.items()) + "; the plan is the capital one",
    ]


def _place(value: float, values: Sequence[float], size: int) -> int:
    low, high = min(values), max(values)
    return 0 if high == low else round((size - 1) * (value - low) / (high - low))
