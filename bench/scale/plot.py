"""Lines as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

COLOURS = ("#c0392b", "#7f8c8d", "#2471a3", "#229954", "#8e44ad")
WIDTH, HEIGHT, MARGIN = 420, 300, 56
Lines = Mapping[str, Sequence[tuple[float, float, float]]]


def plot(lines: Lines) -> str:
    """Two plots side by side, both axes logarithmic: of each line's points (relays, events/s, ms)."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 30}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT + 30}" fill="#ffffff"/>',
        *_panel(
            0, "events/s committed and delivered", {name: [(x, y) for x, y, _ in line] for name, line in lines.items()}
        ),
        *_panel(
            WIDTH,
            "ms from commit to socket at 20/s, p99",
            {name: [(x, y) for x, _, y in line] for name, line in lines.items()},
        ),
    ]
    for index, name in enumerate(lines):
        x = MARGIN + index * 90
        parts.append(f'<rect x="{x}" y="{HEIGHT + 8}" width="12" height="12" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT + 18}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: float, title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    points = [(x, max(y, 0.01)) for line in lines.values() for x, y in line]
    if not points:
        return []
    across = _axis([x for x, _ in points], left + MARGIN, left + WIDTH - 20)
    up = _axis([y for _, y in points], HEIGHT - 40, 40)
    parts = [f'<text x="{left + MARGIN}" y="22" font-weight="bold">{title}</text>']
    for value, place in _ticks([x for x, _ in points], across):
        parts.append(f'<line x1="{place:.1f}" y1="40" x2="{place:.1f}" y2="{HEIGHT - 40}" stroke="#dddddd"/>')
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{value:,g}</text>')
    for value, place in _ticks([y for _, y in points], up):
        parts.append(
            f'<line x1="{left + MARGIN}" y1="{place:.1f}" x2="{left + WIDTH - 20}" y2="{place:.1f}" stroke="#dddddd"/>'
        )
        parts.append(f'<text x="{left + MARGIN - 6}" y="{place + 4:.1f}" text-anchor="end">{value:,g}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">relays</text>')
    for index, line in enumerate(lines.values()):
        path = " ".join(f"{across(x):.1f},{up(max(y, 0.01)):.1f}" for x, y in line)
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
