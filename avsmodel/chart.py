# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG text; their colours are CSS variables, which follow light and dark mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


@dataclass(frozen=True)
class Line:
    """One series of a line chart; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line], x_label: str, y_range: tuple[float, float] | None = None
) -> str:
    """Draw lines over a common x axis, with a legend above and the values as tooltips.

    Args:
        lines: the series, coloured in order.
        x_label: written under the x axis, which starts at 0.
        y_range: range of the y axis; from 0 to the largest value by default.

    Returns:
        HTML.
    """
    points = [_finite(line) for line in lines]
    everything = [point for series in points for point in series]
    if not everything:
        return '<p class="none">No values were logged.</p>'
    x_low, x_high = 0.0, max(x for x, _ in everything)
    y_low, y_high = y_range or (0.0, max(y for _, y in everything) * 1.05 or 1.0)
    x_high = x_high or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        share = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return round(right, 1), round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = []
    for tick in _ticks(y_low, y_high, 5):
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high, 6):
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x}" y="{_HEIGHT - 16}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 1}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, (line, series) in enumerate(zip(lines, points, strict=True)):
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in series))
        parts.append(f'<polyline class="line c{index}" points="{path}"/>')
        if len(series) <= 60:
            for x_value, y_value in series:
                x, y = place(x_value, y_value)
                tip = f"{escape(line.name)} at {x_value:g}: {y_value:.4g}"
                parts.append(
                    f'<circle class="dot c{index}" cx="{x}" cy="{y}" r="3"><title>{tip}</title>'
                    "</circle>"
                )
    legend = "".join(
        f'<span class="key"><i class="c{index}"></i>{escape(line.name)}</span>'
        for index, line in enumerate(lines)
    )
    return f'<div class="keys">{legend}</div>{_svg(_WIDTH, _HEIGHT, parts)}'


def bar_chart(values: Sequence[float], unit: str) -> str:
    """Return SVG with one bar per value; tooltips give index, value and ``unit``."""
    height = 110
    high = max(values, default=0) or 1
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    bottom = height - 20
    parts = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    ]
    parts.append(f'<text x="{_LEFT - 8}" y="14" text-anchor="end">{high:g}</text>')
    for index, value in enumerate(values):
        bar = value / high * (bottom - 8)
        if value:
            parts.append(
                f'<rect class="bar" x="{_LEFT + index * step:.2f}" y="{bottom - bar:.2f}" '
                f'width="{max(step - 1, 0.8):.2f}" height="{bar:.2f}">'
                f"<title>{index}: {value:g} {escape(unit)}</title></rect>"
            )
    for index in (0, len(values) - 1):
        x = _LEFT + (index + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{index}</text>')
    return _svg(_WIDTH, height, parts)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over the last ``window`` values."""
    means = []
    for index in range(len(values)):
        recent = values[max(0, index - window + 1) : index + 1]
        means.append(sum(recent) / len(recent))
    return means


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _finite(line: Line) -> list[tuple[float, float]]:
    pairs = zip(line.x, line.y, strict=True)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
