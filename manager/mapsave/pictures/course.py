"""The picture of an operation over time: its phases, how fast it wrote or read, its steps."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from mapsave import units
from mapsave.pictures import svg

_LEFT = 150  # pixels of the labels beside a chart
_WIDTH = 720  # pixels of the time axis
_ROW = 22
_HEIGHT = 140  # pixels of the rate's chart
_TICKS = 6  # along the time axis, about


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the picture shows. Times are in seconds of the same clock, sizes in bytes.

    ``steps``: when each was taken, and its name. ``samples``: time, phase, bytes done, and in all;
    without any, as for an operation before they were recorded, the steps are shown as phases.
    """

    title: str
    lines: Sequence[str]
    begun: float
    ended: float
    steps: Sequence[tuple[float, str]]
    samples: Sequence[tuple[float, str, int, int]]


def drawn(shown: Shown) -> str:
    """Return the picture."""
    rates = list(_rates(shown.samples))
    parts = [_phases(shown)]
    if rates:
        parts.append(_rate(shown, rates))
    parts.append(_steps(shown))
    return svg.document(shown.title, shown.lines, parts)


def _place(shown: Shown, time: float) -> float:
    """Return where a time is on the axis, in pixels from its beginning."""
    whole = max(shown.ended - shown.begun, 1e-6)
    return _WIDTH * min(max((time - shown.begun) / whole, 0.0), 1.0)


def _intervals(shown: Shown) -> list[tuple[str, float, float]]:
    """Return each phase with its beginning and end, in their order."""
    marks = [(time, phase) for time, phase, *_ in shown.samples] or list(shown.steps)
    found = []
    for name, group in itertools.groupby(marks, key=lambda mark: mark[1]):
        found.append((name, next(group)[0]))
    found.append(("", shown.ended))
    return [(name, begin, end) for (name, begin), (_, end) in itertools.pairwise(found)]


def _phases(shown: Shown) -> svg.Part:
    """Return a row for each phase: how long it took, and when."""
    intervals = _intervals(shown)
    body = []
    names = list(dict.fromkeys(name for name, *_ in intervals))
    for row, name in enumerate(names):
        own = [(begin, end) for each, begin, end in intervals if each == name]
        took = units.format_duration(sum(end - begin for begin, end in own))
        y = row * _ROW
        body.append(svg.text(_LEFT - 70, y + 14, name, anchor="end"))
        body.append(svg.text(_LEFT - 8, y + 14, took, kind="faint", anchor="end"))
        for begin, end in own:
            x = _place(shown, begin)
            width = max(1.0, _place(shown, end) - x)
            said = f"{name}: {took}"
            body.append(svg.rect(_LEFT + x, y + 2, width, _ROW - 6, kind="used3", said=said))
    height = len(names) * _ROW
    return svg.Part(
        "\n".join([*body, svg.moved(_LEFT, height + 4, _axis(shown))]),
        _LEFT + _WIDTH + 40,
        height + 30,
    )


def _axis(shown: Shown) -> str:
    """Return the time axis with its ticks, in seconds since the beginning."""
    whole = shown.ended - shown.begun
    step = _nice(whole / _TICKS)
    body = [f'<path class="axis" d="M0 0h{_WIDTH}"/>']
    for number in range(int(whole / step) + 1 if whole > 0 else 1):
        x = _place(shown, shown.begun + number * step)
        body.append(f'<path class="axis" d="M{svg.number(x)} 0v5"/>')
        body.append(svg.text(x, 20, f"{number * step:g} s", kind="faint", anchor="middle"))
    return "\n".join(body)


def _rates(samples: Sequence[tuple[float, str, int, int]]) -> Iterator[tuple[float, float, float]]:
    """Yield begin, end and bytes per second of what went on between two samples of a phase."""
    for before, after in itertools.pairwise(samples):
        took, done = after[0] - before[0], after[2] - before[2]
        if before[1] == after[1] and took > 0 and done >= 0 and after[2]:
            yield before[0], after[0], done / took


def _rate(shown: Shown, rates: Sequence[tuple[float, float, float]]) -> svg.Part:
    """Return how fast the data went, as an area over the time axis."""
    top = _nice(max(rate for *_, rate in rates) or 1.0, binary=True)
    body = [svg.text(_LEFT, 12, "Bytes per second", kind="faint")]
    for part in (0, 0.5, 1):
        y = 20 + _HEIGHT * (1 - part)
        body.append(f'<path class="axis" opacity=".35" d="M{_LEFT} {svg.number(y)}h{_WIDTH}"/>')
        words = f"{units.format_size(top * part)}/s"
        body.append(svg.text(_LEFT - 8, y + 4, words, kind="faint", anchor="end"))
    for begin, end, rate in rates:
        x, height = _place(shown, begin), _HEIGHT * rate / top
        width = max(0.5, _place(shown, end) - x)
        said = f"{units.format_size(rate)}/s"
        place = (_LEFT + x, 20 + _HEIGHT - height, width, height)
        body.append(svg.rect(*place, kind="used2", said=said))
    body.append(svg.moved(_LEFT, 20 + _HEIGHT, _axis(shown)))
    return svg.Part("\n".join(body), _LEFT + _WIDTH + 40, _HEIGHT + 44)


def _steps(shown: Shown) -> svg.Part:
    """Return the steps with their times since the beginning, as text in columns."""
    body = [svg.text(0, 12, "Steps, and when they were taken")]
    column = 260
    rows = max(1, math.ceil(len(shown.steps) / 3))
    for number, (time, name) in enumerate(shown.steps):
        x, y = number // rows * column, 34 + number % rows * svg.LINE
        after = f"{max(time - shown.begun, 0):.3f} s"
        body.append(svg.text(x + 80, y, after, kind="faint", anchor="end"))
        body.append(svg.text(x + 90, y, name))
    return svg.Part("\n".join(body), 3 * column, 34 + rows * svg.LINE)


def _nice(value: float, *, binary: bool = False) -> float:
    """Return a round number that is not below ``value``: 1, 2 or 5 times a power.

    ``binary``: of units that are powers of 1024.
    """
    unit = 1.0
    while binary and value / unit > 1024:
        unit *= 1024
    power = 10.0 ** math.floor(math.log10(max(value, 1e-6) / unit))
    factor = next((each for each in (1, 2, 5) if each * power * unit >= value), 10)
    return factor * power * unit
