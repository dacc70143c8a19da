"""The saga's picture shows every transition that the code can make, and can be read."""

from itertools import combinations
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

from order_service.diagram import Edge, picture, transitions, walk
from order_service.diagram_svg import svg
from order_service.order import Status
from order_service.saga import SAGA

GROUP, RECTANGLE, TEXT = (f"{{http://www.w3.org/2000/svg}}{name}" for name in ("g", "rect", "text"))
CHARACTER = 7.3  # of the labels' font, at most
ROOT = ET.fromstring(picture())


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Area") -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)

    def lies_in(self, other: "Area") -> bool:
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


def test_every_transition_is_drawn_and_no_other() -> None:
    possible = {
        (order.status, type(event).__name__, step.order.status)
        for order, event, step in transitions()
        if type(event) in SAGA.table[order.status]
    }
    assert drawn() == possible


def test_a_transition_without_a_route_is_an_error() -> None:
    new = (Status.COMPLETED, "RefundRequested", Status.PENDING)
    with pytest.raises(ValueError, match="no route from COMPLETED to PENDING"):
        svg([*walk(), new])


def test_texts_cover_neither_boxes_nor_each_other() -> None:
    page, boxes = area(ROOT.find(RECTANGLE)), [area(group.find(RECTANGLE)) for group in groups("")]
    labels = [extent(text) for group in groups("arrow") for text in group.iter(TEXT)]
    inside = [(extent(text), area(group.find(RECTANGLE))) for group in groups("") for text in group.iter(TEXT)]
    assert not any(one.meets(other) for one, other in combinations([*boxes, *labels], 2))
    assert all(text.lies_in(page) for text in labels)
    assert all(text.lies_in(box) for text, box in inside)


def drawn() -> set[Edge]:
    edges: set[Edge] = set()
    for group in groups("arrow"):
        if group.get("id") != "start":
            before, after = map(Status, group.attrib["id"].split("-"))
            edges.update((before, text.text or "", after) for text in group.iter(TEXT))
    for group in groups(""):
        status = Status(group.attrib["id"])
        events = [text for text in group.iter(TEXT) if "event" in text.attrib["class"].split()]
        edges.update((status, text.text or "", status) for text in events)
    return edges


def groups(kind: str) -> list[ET.Element]:
    """The arrows, or with no kind the boxes."""
    return [group for group in ROOT.iter(GROUP) if (group.get("class") == "arrow") == (kind == "arrow")]


def area(rectangle: ET.Element | None) -> Area:
    assert rectangle is not None
    x, y, width, height = (float(rectangle.attrib[name]) for name in ("x", "y", "width", "height"))
    return Area(x, y, x + width, y + height)


def extent(text: ET.Element) -> Area:
    # Names and captions are in narrower letters, the latter in small ones.
    shrunk = {"name": 1.2, "caption": 0.85, "stays": 0.92}.get(text.get("class", "").split(" ")[0], 1)
    x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), len(text.text or "") * CHARACTER * shrunk
    anchor = "middle" if text.get("class") in {"name", "caption"} else text.get("text-anchor", "start")
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return Area(left, y - 10, left + width, y + 2)
