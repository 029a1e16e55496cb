"""Lines as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

COLOURS = ("#c0392b", "#7f8c8d", "#2471a3", "#229954", "#8e44ad")
WIDTH, HEIGHT, MARGIN = 360, 300, 56
LEAST = 0.01
"""Smaller values, and zero, are drawn as this value."""
Lines = Mapping[str, Sequence[tuple[float, float]]]


def plot(panels: Mapping[str, Lines], across: str = "relays") -> str:
    """Return an SVG with panels side by side, each with the same lines over the numbers of `across`.

    All axes are logarithmic.
    """
    names = list(next(iter(panels.values())))
    width = len(panels) * WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 30}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + 30}" fill="#ffffff"/>',
    ]
    for index, (title, lines) in enumerate(panels.items()):
        parts += _panel(index * WIDTH, title, lines, across)
    for index, name in enumerate(names):
        x = MARGIN + index * max(90, width // (len(names) + 1))
        parts.append(f'<rect x="{x}" y="{HEIGHT + 8}" width="12" height="12" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT + 18}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, title: str, lines: Lines, axis: str) -> list[str]:
    points = [(x, max(y, LEAST)) for line in lines.values() for x, y in line]
    parts = [f'<text x="{left + MARGIN}" y="22" font-weight="bold">{title}</text>']
    if not points:
        return parts
    begin, end = left + MARGIN, left + WIDTH - 20
    across = _axis([x for x, _ in points], begin, end)
    up = _axis([y for _, y in points], HEIGHT - 40, 40)
    for value, place in _ticks([x for x, _ in points], across):
        parts.append(f'<line x1="{place:.1f}" y1="40" x2="{place:.1f}" y2="{HEIGHT - 40}" stroke="#dddddd"/>')
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{value:,g}</text>')
    for value, place in _ticks([y for _, y in points], up):
        parts.append(f'<line x1="{begin}" y1="{place:.1f}" x2="{end}" y2="{place:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{begin - 6}" y="{place + 4:.1f}" text-anchor="end">{value:,g}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{axis}</text>')
    for index, line in enumerate(lines.values()):
        path = " ".join(f"{across(x):.1f},{up(max(y, LEAST)):.1f}" for x, y in line)
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _axis(values: Sequence[float], begin: float, end: float) -> Callable[[float], float]:
    low, high = _decades(values)
    return lambda value: begin + (math.log10(value) - low) / (high - low) * (end - begin)


def _ticks(values: Sequence[float], axis: Callable[[float], float]) -> list[tuple[float, float]]:
    low, high = _decades(values)
    return [(10.0**exponent, axis(10.0**exponent)) for exponent in range(low, high + 1)]
