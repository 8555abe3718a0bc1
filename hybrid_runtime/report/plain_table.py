"""The table that all terminal reports draw with."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

HEADING = "underline dim"


def plain_table(title: str, *headings: str, gap: int = 2) -> Table:
    """An empty table without a frame."""
    table = Table(
        title=Text(f"\n{title}", style="bold"), title_justify="left", box=None, pad_edge=False, padding=(0, gap, 0, 0)
    )
    for heading in headings:
        table.add_column(Text(heading, style=HEADING), overflow="fold")
    return table
