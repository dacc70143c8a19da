"""The saga's picture as SVG: statuses at fixed places, arrows and labels from the walk in `order_service.diagram`.

    row 1               PENDING ────▶ CONFIRMED ◀─┐
    row 2   CANCELLED ◀─ PROVISIONING ─▶ COMPLETED │
    row 3               FAILED ◀────────────┴──────┘

The picture has its own background, so it is readable on any page, and follows the reader's light or dark setting.
Only the places and the routes of the arrows are drawn by hand; a transition without a route is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from order_service.order import Status

Edges = Iterable[tuple[Status, str, Status]]
Point = tuple[int, int]

_LINE = 15
_BOX = 168
_PADDING = 14
_LEFT, _MIDDLE, _RIGHT = 98, 410, 744
_WIDTH = 880

_CAPTIONS = {
    Status.PENDING: "waits for stock and payment",
    Status.CONFIRMED: "goods reserved and paid",
    Status.PROVISIONING: "a server is being bought",
    Status.COMPLETED: "delivered",
    Status.CANCELLED: "stock and money returned",
    Status.FAILED: "money held for a decision",
}

_STYLE = """
    text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #24292f }
    .name { font: 600 14px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; text-anchor: middle }
    .caption { font: 11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; text-anchor: middle }
    .caption, .stays { fill: #57606a }
    .stays { font-size: 11px }
    .page { fill: #ffffff; stroke: #d0d7de }
    .open rect { fill: #ddf4ff; stroke: #0969da }
    .done rect { fill: #dafbe1; stroke: #1a7f37 }
    .undone rect { fill: #f6f8fa; stroke: #57606a }
    .held rect { fill: #fff1e5; stroke: #bc4c00 }
    .hairline { stroke: #8c959f; stroke-width: 0.5 }
    .arrow path { fill: none; stroke: #57606a; stroke-width: 1.5; marker-end: url(#head) }
    .dot, #head path { fill: #57606a; stroke: none }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 }
        .caption, .stays { fill: #adbac7 }
        .page { fill: #161b22; stroke: #373e47 }
        .open rect { fill: #0c2d6b; stroke: #58a6ff }
        .done rect { fill: #0f3d1e; stroke: #3fb950 }
        .undone rect { fill: #22272e; stroke: #8b949e }
        .held rect { fill: #4d2a0a; stroke: #f0883e }
        .arrow path { stroke: #adbac7 }
        .dot, #head path { fill: #adbac7 }
    }"""

_KINDS = {
    Status.PENDING: "open",
    Status.PROVISIONING: "open",
    Status.CONFIRMED: "done",
    Status.COMPLETED: "done",
    Status.CANCELLED: "undone",
    Status.FAILED: "held",
}


class Box(NamedTuple):
    """A status: where it is drawn, and the events after which an order stays in it."""

    status: Status
    centre: int
    top: int
    stays: Sequence[str]

    @property
    def height(self) -> int:
        """Room for name, caption and events."""
        return 50 + (_LINE * (len(self.stays) + 1) + 8 if self.stays else 0)

    @property
    def bottom(self) -> int:
        """The lower edge."""
        return self.top + self.height

    @property
    def left(self) -> int:
        """The left edge."""
        return self.centre - _BOX // 2

    @property
    def right(self) -> int:
        """The right edge."""
        return self.centre + _BOX // 2


class Route(NamedTuple):
    """How an arrow runs, and where the first line of its label stands."""

    points: Sequence[Point]
    label: Point
    anchor: str = "start"


def svg(edges: Edges) -> str:
    """Draw the transitions: one that changes the status as an arrow, one that does not as a line in its box."""
    stays: dict[Status, list[str]] = {status: [] for status in _KINDS}
    arrows: dict[tuple[Status, Status], list[str]] = {}
    for before, event, after in sorted(edges):
        events = stays[before] if before is after else arrows.setdefault((before, after), [])
        events.append(event)
    boxes = _place(stays, arrows)
    routes = _routes(boxes, arrows)
    missing = [f"{before} to {after}" for before, after in arrows if (before, after) not in routes]
    if missing:
        raise ValueError(f"order_service/diagram_svg.py has no route from {', '.join(missing)}")
    height = max(box.bottom for box in boxes.values()) + _PADDING
    pending = boxes[Status.PENDING]
    start = Route([(_MIDDLE, 20), (_MIDDLE, pending.top)], (_MIDDLE + 10, 34))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
            "<title>The saga: the statuses of an order and the events that lead from one to another</title>",
            f"<style>{_STYLE}\n</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
            f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<circle class="dot" cx="{_MIDDLE}" cy="18" r="6"/>',
            _arrow("start", start, ["POST /orders"]),
            *(_arrow(f"{before}-{after}", routes[before, after], events) for (before, after), events in arrows.items()),
            *(_box(box) for box in boxes.values()),
            "</svg>\n",
        ]
    )


def _place(
    stays: Mapping[Status, Sequence[str]], arrows: Mapping[tuple[Status, Status], Sequence[str]]
) -> dict[Status, Box]:
    """Three rows, as far apart as the labels between them need."""

    def row(top: int, *statuses: tuple[Status, int]) -> list[Box]:
        return [Box(status, centre, top, stays[status]) for status, centre in statuses]

    refusals = len(arrows.get((Status.PENDING, Status.CANCELLED), ()))
    first = row(62, (Status.PENDING, _MIDDLE), (Status.CONFIRMED, _RIGHT))
    below = max(max(box.bottom for box in first) + 4 * _LINE, _middle(first[0]) + refusals * _LINE + 30)
    second = row(below, (Status.CANCELLED, _LEFT), (Status.PROVISIONING, _MIDDLE), (Status.COMPLETED, _RIGHT))
    third = row(max(box.bottom for box in second) + 5 * _LINE, (Status.FAILED, _MIDDLE))
    return {box.status: box for box in (*first, *second, *third)}


def _routes(
    boxes: Mapping[Status, Box], arrows: Mapping[tuple[Status, Status], Sequence[str]]
) -> dict[tuple[Status, Status], Route]:
    pending, confirmed, cancelled = boxes[Status.PENDING], boxes[Status.CONFIRMED], boxes[Status.CANCELLED]
    provisioning, completed, failed = boxes[Status.PROVISIONING], boxes[Status.COMPLETED], boxes[Status.FAILED]

    def above(y: int, *edge: Status) -> int:
        return y - 7 - _LINE * (len(arrows.get((edge[0], edge[1]), ())) - 1)

    across, along = confirmed.top + 25, provisioning.top + 25
    refused, failing, retried = _LEFT - 70, _MIDDLE - 40, _MIDDLE + 40
    # On the right of FAILED, one below the other; each label stands above its line.
    to_completed = failed.top + 25
    from_completed = to_completed + _LINE + 7
    from_confirmed = from_completed + _LINE + 7
    to_confirmed = from_confirmed + 2 * _LINE + 7
    lost, regained = _RIGHT + 100, _RIGHT + 118
    return {
        (Status.PENDING, Status.CONFIRMED): Route(
            [(pending.right, across), (confirmed.left, across)],
            (pending.right + 10, above(across, Status.PENDING, Status.CONFIRMED)),
        ),
        (Status.CONFIRMED, Status.COMPLETED): Route(
            [(_RIGHT, confirmed.bottom), (_RIGHT, completed.top)],
            (_RIGHT - 10, confirmed.bottom + 22),
            "end",
        ),
        (Status.PENDING, Status.PROVISIONING): Route(
            [(_MIDDLE, pending.bottom), (_MIDDLE, provisioning.top)],
            (_MIDDLE + 10, pending.bottom + 22),
        ),
        (Status.PENDING, Status.CANCELLED): Route(
            [(pending.left, across), (refused, across), (refused, cancelled.top)],
            (refused + 10, across + 20),
        ),
        (Status.PROVISIONING, Status.CANCELLED): Route(
            [(provisioning.left, along), (cancelled.right, along)],
            (cancelled.right + 10, above(along, Status.PROVISIONING, Status.CANCELLED)),
        ),
        (Status.PROVISIONING, Status.COMPLETED): Route(
            [(provisioning.right, along), (completed.left, along)],
            (provisioning.right + 8, above(along, Status.PROVISIONING, Status.COMPLETED)),
        ),
        (Status.PROVISIONING, Status.FAILED): Route(
            [(failing, provisioning.bottom), (failing, failed.top)],
            (failing - 10, provisioning.bottom + 40),
            "end",
        ),
        (Status.FAILED, Status.PROVISIONING): Route(
            [(retried, failed.top), (retried, provisioning.bottom)],
            (retried + 10, provisioning.bottom + 40),
        ),
        (Status.FAILED, Status.COMPLETED): Route(
            [(failed.right, to_completed), (_RIGHT, to_completed), (_RIGHT, completed.bottom)],
            (failed.right + 8, above(to_completed, Status.FAILED, Status.COMPLETED)),
        ),
        (Status.COMPLETED, Status.FAILED): Route(
            [(_RIGHT + 40, completed.bottom), (_RIGHT + 40, from_completed), (failed.right, from_completed)],
            (failed.right + 8, above(from_completed, Status.COMPLETED, Status.FAILED)),
        ),
        (Status.CONFIRMED, Status.FAILED): Route(
            [(confirmed.right, across), (lost, across), (lost, from_confirmed), (failed.right, from_confirmed)],
            (failed.right + 8, above(from_confirmed, Status.CONFIRMED, Status.FAILED)),
        ),
        (Status.FAILED, Status.CONFIRMED): Route(
            [
                (failed.right, to_confirmed),
                (regained, to_confirmed),
                (regained, across - 12),
                (confirmed.right, across - 12),
            ],
            (failed.right + 8, above(to_confirmed, Status.FAILED, Status.CONFIRMED)),
        ),
    }


def _middle(box: Box) -> int:
    return box.top + box.height // 2


def _arrow(name: str, route: Route, events: Sequence[str]) -> str:
    path = " L".join(f"{x} {y}" for x, y in route.points)
    x, y = route.label
    lines = [
        f'<text x="{x}" y="{y + number * _LINE}" text-anchor="{route.anchor}">{escape(event)}</text>'
        for number, event in enumerate(events)
    ]
    return "\n".join([f'<g class="arrow" id="{name}">', f'<path d="M{path}"/>', *lines, "</g>"])


def _box(box: Box) -> str:
    lines = [
        f'<g class="{_KINDS[box.status]}" id="{box.status}">',
        f'<rect x="{box.left}" y="{box.top}" width="{_BOX}" height="{box.height}" rx="8" stroke-width="1.5"/>',
        f'<text class="name" x="{box.centre}" y="{box.top + 21}">{box.status}</text>',
        f'<text class="caption" x="{box.centre}" y="{box.top + 38}">{escape(_CAPTIONS[box.status])}</text>',
    ]
    if box.stays:
        line = box.top + 49
        lines += [
            f'<path class="hairline" d="M{box.left} {line} H{box.right}"/>',
            f'<text class="stays" x="{box.left + 10}" y="{line + _LINE}">stays here on</text>',
        ]
    for number, event in enumerate(box.stays, 2):
        lines.append(
            f'<text class="stays event" x="{box.left + 18}" y="{line + number * _LINE}">{escape(event)}</text>'
        )
    return "\n".join([*lines, "</g>"])
