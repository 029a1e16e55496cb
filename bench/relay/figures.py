"""The figures, and their table. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of the values by the nearest-rank method.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Row:
    """One line of the table: the measured quantity, its unit, and whether more is better."""

    title: str
    unit: str
    more_is_better: bool


def figure(value: float) -> str:
    """Return a number with three significant digits and separators of thousands."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = max(0, 3 - len(str(int(abs(value)))))
        return f"{round(value, 3 - len(str(int(abs(value))))):,.{digits}f}"
    return f"{value:.3g}"


def ratio(row: Row, value: float, base: float) -> str:
    """Return the ratio to the base, above 1 if the value is better; empty if either of them is missing or zero."""
    if not value or not base:
        return ""
    return f" ({figure(value / base if row.more_is_better else base / value)}x)"


RELAY = "userrealtime"
OWN_SERVER = "its own server"


def beside(
    rows: Mapping[Row, Mapping[str, Sequence[float]]], title: str, ours: str, theirs: str
) -> dict[Row, dict[str, Sequence[float]]]:
    """Return the rows of one protocol: the relay, which is `ours`, and the protocol's own server, which is `theirs`."""
    return {
        Row(f"{title}: {row.title}", row.unit, row.more_is_better): {
            RELAY: measured[ours],
            OWN_SERVER: measured.get(theirs, ()),
        }
        for row, measured in rows.items()
        if ours in measured
    }


def table(rows: Mapping[Row, Mapping[str, Sequence[float]]], names: Sequence[str], base: str) -> str:
    """Return a Markdown table with the median of each row and server, and its ratio to `base`."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row, measured in rows.items():
        if not any(measured.get(name) for name in names):
            continue
        cells = []
        for name in names:
            values = measured.get(name, ())
            if not values:
                cells.append("—")
                continue
            middle = statistics.median(values)
            against = measured.get(base, ())
            shown = ratio(row, middle, statistics.median(against)) if against and name != base else ""
            cells.append(figure(middle) + shown)
        lines.append(f"| {row.title}, {row.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)
