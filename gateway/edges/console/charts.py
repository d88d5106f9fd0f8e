"""Charts of the last day, drawn as SVG: no script, no style, and each bar says its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from gateway.ledger.overview import DELAYS, Hour

STEP: Final = 20
"""Width of an hour."""

HEIGHT: Final = 60
"""Height of the highest bar."""

CLASSES: Final = ("10 s", "1 min", "5 min", "1 h", "longer")
"""What a delay of each class is called: at most this."""


_BAR: Final = Markup('<rect class="{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}" rx="2"/>')
_GROUND: Final = Markup('<rect class="ground" x="{}" y="0" width="{}" height="{}"/>')


def traffic(hours: Sequence[Hour]) -> Markup:
    """Draw how many mails came, upwards, and how many collections, downwards."""
    most = max((max(one.received, one.collected) for one in hours), default=0) or 1
    bars = []
    for at, one in enumerate(hours):
        said = f"{_clock(one)}: {one.received} in, {one.collected} out"
        up, down = _scaled(one.received, most), _scaled(one.collected, most)
        pieces = _bar(at, HEIGHT - up, up, "in") + _bar(at, HEIGHT + 1, down, "out")
        bars.append(Markup("<g><title>{}</title>{}{}</g>").format(said, _ground(at, 2 * HEIGHT), pieces))
    received, collected = sum(one.received for one in hours), sum(one.collected for one in hours)
    label = f"Last 24 hours: {received} mails in, {collected} collections out; at most {most} in an hour"
    return _drawing(label, bars, hours, 2 * HEIGHT, HEIGHT)


def delays(hours: Sequence[Hour]) -> Markup:
    """Draw how long mails took to the PACS, hour by hour, as shares of each class."""
    bars = []
    for at, one in enumerate(hours):
        count = sum(one.delays)
        parts = [f"{number} within {name}" for number, name in zip(one.delays, CLASSES, strict=True) if number]
        said = f"{_clock(one)}: {', '.join(parts).replace('within longer', 'longer') or 'nothing delivered'}"
        pieces, below = Markup(), 2.0 * HEIGHT
        for kind, number in enumerate(one.delays):
            if number:
                height = 2 * HEIGHT * number / count
                below -= height
                pieces += _bar(at, below, height, f"delay-{kind}")
        bars.append(Markup("<g><title>{}</title>{}{}</g>").format(said, _ground(at, 2 * HEIGHT), pieces))
    return _drawing(f"Last 24 hours, mail to PACS: {summary(hours)}", bars, hours, 2 * HEIGHT, 2 * HEIGHT)


def summary(hours: Sequence[Hour]) -> str:
    """Say in one sentence how long mails took."""
    totals = [sum(one.delays[kind] for one in hours) for kind in range(len(DELAYS) + 1)]
    count = sum(totals)
    if not count:
        return "nothing was delivered"
    quick = 100 * sum(totals[:2]) // count
    slow = f"; {totals[-1]} took longer than an hour" if totals[-1] else ""
    return f"{quick} % of {count} within a minute{slow}"


def _scaled(value: int, most: int) -> float:
    return max(HEIGHT * value / most, 1.5) if value else 0.0


def _bar(at: int, top: float, height: float, kind: str) -> Markup:
    if not height:
        return Markup()
    return _BAR.format(kind, at * STEP + 3, top, STEP - 6, height)


def _ground(at: int, height: int) -> Markup:
    """A place for the pointer, where the bar is low or there is none."""
    return _GROUND.format(at * STEP, STEP, height)


def _drawing(label: str, bars: Sequence[Markup], hours: Sequence[Hour], height: int, axis: int) -> Markup:
    width = STEP * len(hours)
    hands = Markup().join(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            at * STEP + STEP // 2, height + 14, f"{one.began.astimezone():%H}"
        )
        for at, one in enumerate(hours)
        if one.began.astimezone().hour % 4 == 0
    )
    line = Markup('<line class="axis" x1="0" y1="{0}.5" x2="{1}" y2="{0}.5"/>').format(axis, width)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        width, height + 18, escape(label), Markup().join(bars), line, hands
    )


def _clock(hour: Hour) -> str:
    return f"{hour.began.astimezone():%H:%M}"
