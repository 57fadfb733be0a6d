"""Small charts as inline SVG text: lines over rounds, a strip of rounds, bars, and a scale from worse to better.

It knows geometry and the page's style classes (`fed`, `per`, `axis`, ...; colours are the page's, so that light and
dark both work). It does not know what the numbers mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 34


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order of x, the style class that colours it, and its name."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], marks: Sequence[float], *, rounds: int, x_label: str, y_label: str) -> str:
    """Lines over rounds 1 to ``rounds``; ``marks``: rounds flagged by a triangle on the axis. Both axes have labels."""
    values = [y for one in series for _, y in one.points if math.isfinite(y)]
    if not values:
        return _svg(WIDTH, 40, '<text class="note" x="0" y="24">no round was played</text>', "no data")
    low, high, ticks = _scale(min(values), max(values))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + (value - 0.5) / max(rounds, 1) * (right - LEFT)

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _round_ticks(rounds):
        parts.append(f'<text class="tick" x="{x_of(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for mark in marks:
        x = x_of(mark)
        parts.append(
            f'<path class="mark" d="M{x - 3.5:.1f} {bottom + 4.5} h7 l-3.5 -6 z">'
            f"<title>round {mark:g}: personal components replaced</title></path>"
        )
    for one in series:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one.points if math.isfinite(y))
        parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
        for x, y in one.points:
            if math.isfinite(y):
                parts.append(
                    f'<circle class="dot {one.style}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6">'
                    f"<title>{escape(one.name)}, round {x:g}: {y:.3f}</title></circle>"
                )
    middle = (LEFT + right) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    across = (TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="translate(10 {across:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    described = "; ".join(
        f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in series if one.points
    )
    return _svg(WIDTH, HEIGHT, "".join(parts), f"{y_label} by {x_label}: {described}")


def round_strip(played: Mapping[int, bool], *, rounds: int) -> str:
    """One cell per round: empty if the device was not sampled, a ring if it kept its own, filled if it replaced.

    ``played``: by round, counted from 1, whether it replaced.
    """
    step = min(26.0, 620 / max(rounds, 1))
    radius = min(5.0, step * 0.32)
    parts = []
    for number in range(1, rounds + 1):
        x = (number - 0.5) * step
        if number not in played:
            parts.append(f'<circle class="unplayed" cx="{x:.1f}" cy="9" r="1.2"/>')
            continue
        style, what = ("replaced", "replaced") if played[number] else ("kept", "kept its own")
        parts.append(
            f'<circle class="{style}" cx="{x:.1f}" cy="9" r="{radius:.1f}">'
            f"<title>round {number}: {what}</title></circle>"
        )
    count = sum(played.values())
    text = f"{count} replacements in {len(played)} rounds played, of {rounds}"
    return _svg(step * rounds, 18, "".join(parts), text, fixed=True)


def round_ruler(rounds: int) -> str:
    """The numbers of rounds over the strips."""
    step = min(26.0, 620 / max(rounds, 1))
    parts = [
        f'<text class="tick" x="{(tick - 0.5) * step:.1f}" y="12" text-anchor="middle">{tick}</text>'
        for tick in _round_ticks(rounds)
    ]
    return _svg(step * rounds, 16, "".join(parts), "rounds", fixed=True)


def bar(value: float, largest: float, style: str) -> str:
    """A horizontal bar as a share of ``largest``, as wide as its container."""
    share = 100 * value / largest if largest > 0 else 0
    return f'<span class="bar {style}" style="width:{max(share, 0.5):.2f}%"></span>'


def better_scale(floor: float, federated: float, stage1: float, personal: float, *, higher_is_better: bool) -> str:
    """Four values on one line, better to the right: floor a tick, federated a dot, stage 1 a ring, personal a dot."""
    values = [floor, federated, stage1, personal]
    if not all(math.isfinite(value) for value in values):
        return ""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    width, pad = 190, 9

    def x_of(value: float) -> float:
        share = (value - low) / spread
        return pad + (share if higher_is_better else 1 - share) * (width - 2 * pad)

    parts = [
        f'<line class="grid" x1="{pad}" x2="{width - pad}" y1="10" y2="10"/>',
        f'<line class="floor" x1="{x_of(floor):.1f}" x2="{x_of(floor):.1f}" y1="4" y2="16"/>',
        f'<circle class="dot fed" cx="{x_of(federated):.1f}" cy="10" r="4.6"/>',
        f'<circle class="ring per" cx="{x_of(stage1):.1f}" cy="10" r="4"/>',
        f'<circle class="dot per" cx="{x_of(personal):.1f}" cy="10" r="4.6"/>',
    ]
    return _svg(width, 20, "".join(parts), "from worse to better", fixed=True)


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round limits around the values and three to six ticks between them; from zero if the values come near it."""
    if low > 0 and low < 0.4 * high:
        low = 0.0
    spread = (high - low) or abs(high) or 1.0
    raw = spread / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [round(number * step, 10) for number in range(first, last + 1)]
    return first * step, last * step, ticks


def _round_ticks(rounds: int) -> list[int]:
    """The first round, and every second, fifth, tenth, ... so that at most eight numbers are shown."""
    if rounds <= 8:
        return list(range(1, rounds + 1))
    step = next(size for size in (2, 5, 10, 20, 50, 100, 200, 500, 1000) if rounds / size <= 8 or size == 1000)
    return [1, *range(step if step > 2 else 3, rounds + 1, step)]


def _svg(width: float, height: float, content: str, description: str, *, fixed: bool = False) -> str:
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else ""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" aria-label="{escape(description, quote=True)}">'
        f"{content}</svg>"
    )
