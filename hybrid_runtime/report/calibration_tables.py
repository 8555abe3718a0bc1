"""What a calibration found, in a terminal: units, communication, the rest, and what is missing with the reason."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_runtime.calibration import Calibration, ServedUnitTimes, Spread, UnitTimes
from hybrid_runtime.report.cells import bytes_text, duration_text, printable
from hybrid_runtime.report.plain_table import plain_table

_UNSTEADY = 3


def calibration_tables(found: Calibration) -> RenderableType:
    """All of it; times are medians."""
    where = f"{printable(found.fingerprint['device'])}, torch {printable(found.fingerprint['torch'])}"
    parts: list[RenderableType] = [Text(f"calibrated on {where}", style="bold")]
    parts.append(Text(f"company: {printable(str(found.company))}"))
    parts.append(_served(found.served) if found.served else _units((*found.units, *found.forgetting)))
    if found.served_items and found.served_paces:
        parts.append(_engine(found))
    if found.collectives or found.messages:
        parts.append(_communication(found))
    parts.append(Text(f"\n{_rest(found)}"))
    parts += [Text(unsteady, style="yellow")] if (unsteady := _unsteady(found)) else []
    parts += [Text(f"not measured: {printable(what)} ({printable(why)})") for what, why in found.not_measured.items()]
    return Group(*parts)


def _units(rows: tuple[UnitTimes, ...]) -> RenderableType:
    table = plain_table("units, one microbatch", "unit", "parts", "tp", "size", "F", "B", "I", "W", "saved", "until W")
    _to_the_right(table, 1)
    for row in rows:
        times = (_time(time) for time in (row.forward, row.backward, row.input_grad, row.weight_grad))
        sizes = bytes_text(row.saved_bytes), bytes_text(row.until_w_bytes)
        forgets = "" if row.recompute == "none" else f", recompute {row.recompute}"
        names = printable(row.unit + forgets), str(row.parts), str(row.tp_degree), str(row.microbatch_size)
        table.add_row(*map(Text, (*names, *times, *sizes)))
    return table


def _served(rows: tuple[ServedUnitTimes, ...]) -> RenderableType:
    table = plain_table("units, one item", "unit", "parts", "tp", "item", "rows", "tokens", "behind", "time")
    _to_the_right(table, 1)
    for row in rows:
        names = printable(row.unit), str(row.parts), str(row.tp_degree), row.kind
        sizes = str(row.rows), str(row.rows * row.length), str(row.start)
        table.add_row(*map(Text, (*names, *sizes, _time(row.time))))
    return table


def _engine(found: Calibration) -> RenderableType:
    """What the runtime adds to an item, and how unevenly cores work."""
    slow, fast = (f"{pace / 10**4:.0f} %" for pace in (found.served_paces[-1], found.served_paces[0]))
    title = f"engine, one item; a tenth of all items takes {slow} of the usual time, another {fast}"
    table = plain_table(title, "ranks", "rows", "in a span", "before", "behind", "later rank", "fetch", "back", "hop")
    _to_the_right(table, 1)
    for row in found.served_items:
        times = (row.stage_ns, row.before_ns, row.after_ns, row.next_ns + row.late_ns, row.fetch_ns, row.back_ns)
        hops = ", ".join(f"{duration_text(hop.time_ns / 1e9)} ({bytes_text(hop.num_bytes)})" for hop in row.hops)
        table.add_row(*map(Text, (row.ranks, str(row.rows), *(duration_text(ns / 1e9) for ns in times), hops or "-")))
    return table


def _communication(found: Calibration) -> RenderableType:
    table = plain_table("communication", "what", "ranks", "size", "median", "p10", "p90")
    _to_the_right(table, 1)
    for row in found.collectives:
        _add(table, row.kind, str(row.ranks), row.num_bytes, row.time)
    for message in found.messages:
        _add(table, "message", "2", message.num_bytes, message.one_way)
        _add(table, "message, both ways", "2", message.num_bytes, message.both_ways)
    return table


def _add(table: Table, what: str, ranks: str, num_bytes: int, time: Spread) -> None:
    times = (duration_text(ns / 1e9) for ns in (time.p50_ns, time.p10_ns, time.p90_ns))
    table.add_row(*map(Text, (what.replace("_", " "), ranks, bytes_text(num_bytes), *times)))


def _unsteady(found: Calibration) -> str:
    """Whether something else ran meanwhile: then a tenth of the times is several times as long as another tenth."""
    times = [row.time for row in found.collectives] + [row.one_way for row in found.messages]
    times += [time for row in found.units for time in (row.forward, row.backward)]
    times += [row.time for row in found.served]
    wide = sum(time.p90_ns > _UNSTEADY * time.p10_ns for time in times)
    if 4 * wide < len(times):
        return ""
    return f"warning: {wide} of {len(times)} times vary by more than {_UNSTEADY}x: calibrate again on an idle machine"


def _rest(found: Calibration) -> str:
    slower = ", ".join(f"{what} x{factor}" for what, factor in found.overlap.items()) or "not measured"
    action, step, fixed, per_million = (
        duration_text(ns / 1e9)
        for ns in (found.action_ns, found.step_ns, found.optimizer_fixed_ns, found.optimizer_per_million_ns)
    )
    each = found.optimizer_bytes_per_parameter
    return (
        f"executor: {action} per action, {step} per step\n"
        f"optimizer: {fixed} and {per_million} per million parameters, {each} bytes each\n"
        f"side by side: {slower}\n"
        f"devices, against the median: {', '.join(found.device_factors) or 'not measured'}"
    )


def _time(time: Spread) -> str:
    return duration_text(time.p50_ns / 1e9)


def _to_the_right(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"
