"""A report's rows as bars, in SVG: one group per quantity, one bar per contestant, its whisker the spread of the rounds.

Each group has a scale of its own, for the quantities have different units; only bars of one group can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report import Report, Row, figure, spread

WIDTH, LABEL, VALUE = 860, 230, 190
"""Pixels: the whole, the names on the left, the figures on the right; bars have what is left."""
LINE, GAP = 20, 16
OURS, OTHERS = "#2f6f4f", "#9aa5a0"


def svg(report: Report) -> str:
    """Quantities with one contestant are left out: there is nothing to compare."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        groups.setdefault(row.what, []).append(row)
    parts: list[str] = []
    y = 8
    for what, rows in groups.items():
        if len(rows) > 1:
            parts += _group(what, rows, y)
            y += LINE * (len(rows) + 1) + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *parts, "</svg>\n"])


def _group(what: str, rows: Sequence[Row], y: int) -> list[str]:
    longest = max(max(row.values) for row in rows) or 1.0
    scale = (WIDTH - LABEL - VALUE) / longest
    parts = [_text(0, y + 14, f"{what}, {rows[0].unit}", weight="bold")]
    for at, row in enumerate(rows, start=1):
        top = y + at * LINE
        middle = top + LINE / 2
        colour = OURS if row.who.startswith("hermetic") else OTHERS
        low, high = LABEL + min(row.values) * scale, LABEL + max(row.values) * scale
        parts.append(_text(0, top + 15, row.who))
        parts.append(
            f'<rect x="{LABEL}" y="{top + 3}" width="{row.median * scale:.1f}" height="{LINE - 6}" fill="{colour}"/>'
        )
        if len(row.values) > 1:
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="black" stroke-width="1.5"/>')
        parts.append(_text(high + 6, top + 15, spread(row.values) if len(row.values) > 1 else figure(row.median)))
    return parts


def _text(x: float, y: float, text: str, *, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
