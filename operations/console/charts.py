"""Charts as the template draws them: lines and bars over the points of a range, with scale, summary and titles. Pure.

The drawing is WIDTH by HEIGHT and stretched to the place that there is, so all text is outside of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from operations.console import wording
from operations.samples.history import Point, Range, Times

WIDTH, HEIGHT = 600.0, 100.0

Value = float | None
Format = Callable[[Value], str]


class Series(NamedTuple):
    """The values of one line, or of one part of the bars, in order of time; None where there is none."""

    name: str
    values: Sequence[Value]


class Shape(NamedTuple):
    """A line through neighbouring points: its series by number, and its coordinates."""

    series: int
    points: str


class Bar(NamedTuple):
    """A part of a bar."""

    series: int
    x: float
    y: float
    width: float
    height: float


class Column(NamedTuple):
    """The place of one step: where it is, when it was, and what its values are in words."""

    x: float
    width: float
    at: datetime
    words: str


class Gap(NamedTuple):
    """A place without data."""

    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that is ready to be drawn; `summary` says in a sentence what it shows."""

    name: str
    title: str
    series: Sequence[Series]
    top: str
    lines: Sequence[Shape]
    bars: Sequence[Bar]
    columns: Sequence[Column]
    gaps: Sequence[Gap]
    summary: str
    latest: Sequence[str]

    @property
    def empty(self) -> bool:
        """True if there is no data at all."""
        return all(value is None for series in self.series for value in series.values)


def _rate(value: Value) -> str:
    return "—" if value is None else f"{wording.number(round(value, 1))}/min"


def _seconds(value: Value) -> str:
    return "—" if value is None else "0 s" if value == 0 else wording.duration(value)


def _count(value: Value) -> str:
    return "—" if value is None else wording.number(value)


def _queue(point: Point) -> str:
    return f" in {point.queue}" if point.queue else ""


def _nothing(_: Point) -> str:
    return ""


class Spec(NamedTuple):
    """What a chart shows, and how its values are written; the scale reaches at least to `least`. Bars are stacked."""

    name: str
    title: str
    series: Sequence[tuple[str, Callable[[Point], Value]]]
    format: Format
    least: float
    bars: bool = False
    note: Callable[[Point], str] = _nothing


THROUGHPUT = Spec(
    "throughput",
    "Orders per minute",
    (("accepted", lambda point: point.accepted), ("settled", lambda point: point.settled)),
    _rate,
    least=1,
)


def _latency(name: str, of: Callable[[Point], Times], least: float) -> Spec:
    return Spec(
        name,
        f"Time from order to settled, {name}",
        (("p50", lambda point: of(point).p50), ("p99", lambda point: of(point).p99)),
        _seconds,
        least,
    )


GOODS = _latency("goods", lambda point: point.goods, 0.1)
SERVERS = _latency("servers", lambda point: point.servers, 1)
FAILURES = Spec(
    "failures",
    "Failed and cancelled orders",
    (("failed", lambda point: point.failed), ("cancelled", lambda point: point.cancelled)),
    _count,
    least=5,
    bars=True,
)
LETTERS = Spec("letters", "Open dead letters", (("open", lambda point: point.dead_letters),), _count, least=5)
QUEUES = Spec(
    "queues", "Oldest message of an inbox", (("at most", lambda point: point.queue_age),), _seconds, 10, note=_queue
)


def charts_of(points: Sequence[Point], *, letters: bool) -> list[Chart]:
    """Return the charts of a range; those of servers only if any was ordered, of dead letters for those who may."""
    specs = [THROUGHPUT, GOODS, FAILURES, QUEUES]
    if any(point.servers.p50 is not None for point in points):
        specs.insert(2, SERVERS)
    if letters:
        specs.insert(-1, LETTERS)
    return [draw(spec, points) for spec in specs]


def draw(spec: Spec, points: Sequence[Point]) -> Chart:
    """Return a chart of these points."""
    series = [Series(name, [value_of(point) for point in points]) for name, value_of in spec.series]
    heights = _stacked(series) if spec.bars else [value for one in series for value in one.values if value is not None]
    top = ceiling(max([spec.least, *heights]), seconds=spec.format is _seconds)
    width = WIDTH / max(len(points), 1)
    return Chart(
        name=spec.name,
        title=spec.title,
        series=series,
        top=spec.format(top).removesuffix("/min").replace(".0 s", " s"),
        lines=[]
        if spec.bars
        else [line for number, one in enumerate(series) for line in _lines(number, one, top, width)],
        bars=list(_bars(series, top, width)) if spec.bars else [],
        columns=[
            Column(_rounded(index * width), _rounded(width), point.at, words_of(spec, point))
            for index, point in enumerate(points)
        ],
        gaps=_gaps(points, width),
        summary=_summary(spec, series),
        latest=[
            spec.format(next((value for value in reversed(one.values) if value is not None), None)) for one in series
        ],
    )


def words_of(spec: Spec, point: Point) -> str:
    """Return the values of a point in words."""
    values = [(name, value_of(point)) for name, value_of in spec.series]
    if _is_gap(point):
        return "no data"
    if all(value is None for _, value in values):
        return "none"
    return ", ".join(f"{name} {spec.format(value)}" for name, value in values) + spec.note(point)


def ceiling(value: float, *, seconds: bool = False) -> float:
    """Return the smallest round number that is not below the value, for the top of the scale."""
    if seconds and value > 60:
        return next(
            (at for at in _ROUND_SECONDS if at >= value), _ROUND_SECONDS[-1] * math.ceil(value / _ROUND_SECONDS[-1])
        )
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999999)


_ROUND_SECONDS = (120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 18000.0, 36000.0, 86400.0)


def step_in_words(wanted: Range) -> str:
    """Return how much time a point stands for."""
    minutes = wanted.step / timedelta(minutes=1)
    return "minute" if minutes == 1 else f"{minutes:.0f} minutes" if minutes < 60 else f"{minutes / 60:.0f} hours"


def _stacked(series: Sequence[Series]) -> list[float]:
    return [sum(value or 0 for value in values) for values in zip(*(one.values for one in series), strict=True)]


def _is_gap(point: Point) -> bool:
    return point.accepted is None


def _gaps(points: Sequence[Point], width: float) -> list[Gap]:
    found = []
    for is_gap, run in groupby(enumerate(points), key=lambda each: _is_gap(each[1])):
        indexes = [index for index, _ in run]
        if is_gap:
            found.append(Gap(_rounded(indexes[0] * width), _rounded(len(indexes) * width)))
    return found


def _lines(number: int, series: Series, top: float, width: float) -> list[Shape]:
    """Return a line for each run of values; a value alone is a dash as wide as its step."""
    found = []
    for has_value, run in groupby(enumerate(series.values), key=lambda each: each[1] is not None):
        values = [(index, value) for index, value in run if value is not None]
        if not has_value:
            continue
        if len(values) == 1:
            index, value = values[0]
            places = [(index * width, value), ((index + 1) * width, value)]
        else:
            places = [((index + 0.5) * width, value) for index, value in values]
        found.append(Shape(number, " ".join(f"{x:.1f},{_y(value, top):.1f}" for x, value in places)))
    return found


def _bars(series: Sequence[Series], top: float, width: float) -> list[Bar]:
    found = []
    for index, values in enumerate(zip(*(one.values for one in series), strict=True)):
        below = 0.0
        for number, value in enumerate(values):
            if value:
                upper = _y(below + value, top)
                bar = Bar(number, index * width + width * 0.1, upper, width * 0.8, _y(below, top) - upper)
                found.append(Bar(number, *(_rounded(part) for part in bar[1:])))
                below += value
    return found


def _y(value: float, top: float) -> float:
    return HEIGHT - value / top * (HEIGHT - 2) - 1


def _rounded(value: float) -> float:
    return round(value, 1)


def _summary(spec: Spec, series: Sequence[Series]) -> str:
    """Return what a chart shows in a sentence, for those who do not see it."""
    parts = []
    for one in series:
        known = [value for value in one.values if value is not None]
        if not known:
            parts.append(f"{one.name}: none")
        elif spec.bars:
            parts.append(f"{one.name}: {spec.format(sum(known))} in all")
        else:
            least, most, last = (spec.format(value) for value in (min(known), max(known), known[-1]))
            parts.append(f"{one.name}: from {least} to {most}, last {last}")
    return f"{spec.title}. {'; '.join(parts)}."
