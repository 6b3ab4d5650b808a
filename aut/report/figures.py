"""Figures as inline SVG: they follow the page's colours, scale, print, and need no script.

A forest plot has a row a difference: point, interval, the minimum detectable difference as a bar, a line at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

ROW = 26
LEFT, RIGHT, WIDTH = 250, 90, 760


def forest(rows: Sequence[dict[str, Any]], title: str) -> str:
    """SVG of differences in points; `rows` carry set, a, b, diff, low, high, mdd."""
    if not rows:
        return ""
    low = min(0.0, *(r["low"] for r in rows), *(-r["mdd"] for r in rows))
    high = max(0.0, *(r["high"] for r in rows), *(r["mdd"] for r in rows))
    pad = 0.06 * (high - low or 1.0)
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * float(value - low) / float(high - low)

    height = ROW * (len(rows) + 2)
    parts = [_open(height, title), _axis(low, high, x, len(rows))]
    for n, row in enumerate(rows):
        y = ROW * (n + 1)
        parts.append(_row(row, x, y))
    return "".join([*parts, "</svg>"])


def bars(shares: dict[str, float], title: str) -> str:
    """SVG of horizontal bars, one a name, values as shares of 1."""
    parts = [_open(ROW * (len(shares) + 1), title)]
    for n, (name, share) in enumerate(shares.items()):
        y = ROW * n + 6
        width = (WIDTH - LEFT - RIGHT) * share
        parts.append(_text(LEFT - 8, y + 13, name, "end"))
        parts.append(f'<rect class="bar" x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 10}"/>')
        parts.append(_text(LEFT + width + 6, y + 13, f"{100 * share:.1f} %"))
    return "".join([*parts, "</svg>"])


def curves(series: dict[str, dict[int, float]], title: str) -> str:
    """SVG of accuracy in per cent by layer, one line a name; layer 0 is what the first block is given."""
    layers = sorted({n for points in series.values() for n in points})
    values = [v for points in series.values() for v in points.values()]
    low, high = _rounded(min(values), max(values))
    top, bottom, left, right = 14.0, 270.0, 50.0, WIDTH - 170.0

    def at(layer: int, value: float) -> tuple[float, float]:
        across = (layer - layers[0]) / max(1, layers[-1] - layers[0])
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low)

    parts = [_open(bottom + 40, title)]
    for value in (low, (low + high) / 2, high):
        y = at(layers[0], value)[1]
        parts.append(f'<line class="tick" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{value:g}", "end"))
    marked = layers[:: max(1, len(layers) // 12)]
    parts += [_text(at(layer, low)[0], bottom + 18, str(layer), "middle") for layer in marked]
    parts.append(_text((left + right) / 2, bottom + 36, "layer", "middle"))
    ends = _apart([at(max(points), points[max(points)])[1] for points in series.values()])
    for n, (name, points) in enumerate(series.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(k, points[k]) for k in sorted(points)))
        parts.append(f'<polyline class="curve c{n % 5}" points="{path}"/>')
        parts.append(f'<text class="c{n % 5}" x="{right + 8:.1f}" y="{ends[n] + 4:.1f}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Limits on whole tens (fives where the values lie close), never equal."""
    step = 10.0 if high - low > 15 else 5.0
    low, high = step * (low // step), step * -(-high // step)
    return low, high if high > low else low + step


def _apart(heights: list[float], gap: float = 15.0) -> list[float]:
    """Heights of labels moved down until none lies on another."""
    placed = list(heights)
    last = -gap
    for n in sorted(range(len(placed)), key=lambda n: heights[n]):
        placed[n] = last = max(heights[n], last + gap)
    return placed


def _row(row: dict[str, Any], x: Any, y: float) -> str:
    better = "up" if row["low"] > 0 else "down" if row["high"] < 0 else "open"
    told = f"{row['diff']:+.1f} ({row['low']:+.1f}, {row['high']:+.1f})"
    mdd = row["mdd"]
    return "".join(
        [
            _text(LEFT - 8, y + 5, f"{row['set']}: {row['a']} - {row['b']}", "end"),
            f'<rect class="mdd" x="{x(-mdd):.1f}" y="{y - 7}" width="{x(mdd) - x(-mdd):.1f}" height="14"/>',
            f'<line class="{better}" x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="{better}" cx="{x(row["diff"]):.1f}" cy="{y}" r="4.5"/>',
            _text(WIDTH - RIGHT + 4, y + 5, told),
        ]
    )


def _axis(low: float, high: float, x: Any, rows: int) -> str:
    bottom = ROW * (rows + 0.6)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 8)
    ticks = [k * step for k in range(int(low // step), int(high // step) + 1) if low <= k * step <= high]
    marks = "".join(
        f'<line class="tick" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="8" y2="{bottom:.0f}"/>'
        + _text(x(t), bottom + 16, f"{t:+g}" if t else "0", "middle")
        for t in ticks
    )
    return marks + f'<line class="zero" x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="4" y2="{bottom:.0f}"/>'


def _open(height: float, title: str) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH + 60} {height:.0f}" role="img" aria-label="{name}"><title>{name}</title>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
