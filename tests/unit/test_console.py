"""The console's pure functions: formats of bodies and numbers, and the figures of the overview."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader

from operations.console import wording
from operations.console.bodies import MOST_EDITED, MOST_INDENTED, MOST_SHOWN, view
from operations.console.dead_letters import is_over, refresh_seconds
from operations.console.figures import SAMPLE, percentile, summarize
from operations.console.pages import TEMPLATES
from operations.console.slots import slot_orders
from operations.console.stock import stock_rows
from operations.console.upstream import path
from operations.dead_letters.outcome import ReplayOutcome
from operations.impact.impact import impact_of
from operations.order_actions.search import OrderSearch, query_of

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def test_a_part_of_a_path_stays_one_part() -> None:
    assert path("orders", "../a b?c#d/e") == "/orders/..%2Fa%20b%3Fc%23d%2Fe"
    assert path("orders", "..") == "/orders/%2E%2E"


# --- Formats. ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (3.44, "3.4 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (11_400, "3 h 10 min"),
        (187_200, "2 d 4 h"),
        (-3, "-3.0 s"),
    ],
    ids=str,
)
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_times_before_and_after_now() -> None:
    assert wording.ago(NOW - timedelta(minutes=3), NOW) == "3 min ago"
    assert wording.ago(NOW + timedelta(hours=2), NOW) == "in 2 h"
    assert wording.ago(NOW, NOW) == "just now"


def test_numbers() -> None:
    assert [wording.number(n) for n in (0, 12345, 0.25, 812.4, None)] == ["0", "12,345", "0.2", "812", "—"]
    assert [wording.percent(share) for share in (0.9684, None)] == ["96.8 %", "—"]
    assert [wording.money(amount) for amount in (199_950, None)] == ["1,999.50", "—"]
    assert [wording.size(count) for count in (12, 2048, 5 * 1024**2)] == ["12 bytes", "2.0 KiB", "5.0 MiB"]


def test_tracebacks_have_paths_relative_to_the_project() -> None:
    text = f'  File "{wording.ROOT}/shared/money.py", line 1\n  File "/usr/lib/python3/x.py", line 2'
    assert wording.in_project(text) == '  File "shared/money.py", line 1\n  File "/usr/lib/python3/x.py", line 2'


# --- Bodies. ---


def test_json_is_indented() -> None:
    shown = view(b'{"a":[1,"\xc3\xa9"]}')
    assert (shown.kind, shown.cut, shown.editable) == ("JSON", False, True)
    assert shown.text == '{\n  "a": [\n    1,\n    "é"\n  ]\n}'


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 20_000], ids=["empty", "half", "deep"])
def test_what_is_not_json_is_text(body: bytes) -> None:
    assert view(body).kind == "text"


def test_a_lone_surrogate_is_shown_as_its_escape() -> None:
    shown = view(b'{"orderId":"\\ud800"}')
    assert (shown.kind, shown.text) == ("JSON", '{\n  "orderId": "\\ud800"\n}')
    assert json.loads(shown.text.encode()) == {"orderId": "\ud800"}


def test_json_is_indented_only_as_far_as_it_is_shown() -> None:
    depth = 150
    body = b"[" * depth + b"1," * 400_000 + b"1" + b"]" * depth
    started = time.process_time()
    shown = view(body)
    # All of it would be 120 million characters.
    assert time.process_time() - started < 1
    assert (shown.kind, len(shown.text), shown.cut) == ("JSON", MOST_SHOWN, True)


def test_bytes_are_dumped() -> None:
    shown = view(b"\xff\x00AB" * 1000)
    assert shown.kind == "bytes"
    assert shown.cut
    assert not shown.editable
    assert shown.text.startswith("000000  ff 00 41 42")
    assert shown.text.splitlines()[0].endswith("..AB..AB..AB..AB")


def test_large_bodies_are_cut() -> None:
    text = view(b"x" * (5 * 1024 * 1024))
    assert (len(text.text), text.cut, text.size, text.editable) == (MOST_SHOWN, True, 5 * 1024 * 1024, False)
    assert view(b'"' + b"x" * MOST_INDENTED + b'"').kind == "text"
    assert not view(b"x" * (MOST_EDITED + 1)).editable


# --- Figures. ---


def orders(status: str, count: int, *, every: float = 1.0, took: float = 0.05, **fields: Any) -> list[dict[str, Any]]:
    """Orders with a status, newest first, the newest placed `every` seconds ago."""
    found = []
    for number in range(1, count + 1):
        placed = NOW - timedelta(seconds=number * every)
        done = {"completedAt": placed + timedelta(seconds=took)} if status in ("CONFIRMED", "COMPLETED") else {}
        found.append({"status": status, "createdAt": placed, **done, **fields})
    return found


def test_shares_are_of_the_decided_orders() -> None:
    failed = orders("CANCELLED", 1, failureReason="no stock")
    recent = summarize(
        [*orders("CONFIRMED", 2), *orders("COMPLETED", 1, took=30, fulfilment="vps"), *failed, *orders("PENDING", 5)],
        NOW,
    )
    assert recent.orders == 9
    assert (recent.succeeded, recent.failed) == (0.75, 0.25)
    assert recent.goods == (2, 0.05, 0.05)
    assert recent.servers == (1, 30.0, 30.0)
    assert recent.reasons == [("CANCELLED", "no stock", 1)]


def test_the_rate_is_over_the_last_minute_or_what_a_full_sample_spans() -> None:
    assert summarize(orders("CONFIRMED", 120), NOW).per_second == pytest.approx(59 / 60)
    assert summarize(orders("CONFIRMED", SAMPLE, every=0.01), NOW).per_second == pytest.approx(100)
    assert summarize([], NOW).per_second == 0


def test_without_orders_there_are_no_figures() -> None:
    recent = summarize([], NOW)
    assert (recent.succeeded, recent.failed, recent.since) == (None, None, None)
    assert recent.goods == (0, None, None)


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50.0, 95.0)
    assert (percentile([7.0], 0.5), percentile([7.0], 0.95)) == (7.0, 7.0)
    assert (percentile([1.0, 2.0, 3.0], 0.5), percentile([1.0, 2.0, 3.0], 0.95)) == (2.0, 3.0)
    assert percentile([], 0.5) is None


# --- Searching, stock. ---


def test_a_search_matches_prefixes_of_ids_and_reasons_without_patterns() -> None:
    query = query_of(OrderSearch(order_id="a.*", user="u1", status="FAILED", reason="(", open=True))
    assert query == {
        "status": "FAILED",
        "_id": {"$regex": r"^a\.\*"},
        "userId": "u1",
        "failureReason": {"$regex": r"^\("},
        "settled": False,
    }


def test_every_time_on_a_page_names_its_zone_or_is_shown_in_that_of_the_viewer() -> None:
    for template in sorted(TEMPLATES.glob("*.html")):
        shown = re.sub(r"<time\b.*?</time>", "", template.read_text())
        bare = re.findall(r"\{\{[^}]*\|\s*clock\b[^}]*\}\}(?! UTC)", shown)
        bare += re.findall(r"<h1>.*%H:%M(?!.*UTC).*", template.read_text())
        assert not bare, (template.name, bare)


def test_an_order_is_late_once_its_slot_has_begun_and_it_has_not_left() -> None:
    start = NOW.isoformat()
    item = {"orderId": "o", "slotStart": start, "visibleAt": start, "status": "RESERVED", "itemsCount": 2}
    before, after = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    states = [slot_orders([item], now)[0] for now in (before, after)]
    assert [(state.visible, state.late) for state in states] == [(False, False), (True, True)]
    (gone,) = slot_orders([item | {"status": "SHIPPED"}], after)
    assert (gone.shipped, gone.late) == (True, False)


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (9_999, "9,999"), (10_000, "10,000 or more")])
def test_a_count_that_stopped_says_so(number: int, text: str) -> None:
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    templates.filters.update(wording.FILTERS)
    macros: Any = templates.get_template("macros.html").module
    assert macros.counted(number) == text


def test_stock_bars_have_one_scale_and_uncounted_products_none() -> None:
    found = stock_rows(
        [
            {"productId": "p1", "quantity": 6, "reserved": 4},
            {"productId": "vps", "quantity": None, "reserved": 2},
            {"productId": "gone", "quantity": 0, "reserved": 0},
        ]
    )
    assert [(s.product_id, s.free, s.reserved, s.scale) for s in found] == [
        ("p1", 6, 4, 10),
        ("vps", None, 2, 10),
        ("gone", 0, 0, 10),
    ]


# --- The page of a replay. ---


def test_the_page_of_a_replay_refreshes_itself_until_its_orders_are_settled() -> None:
    def every(status: str, outcome: ReplayOutcome, *settled: bool, minutes: int = 1) -> int | None:
        replay = {"status": status, "doneAt": NOW - timedelta(minutes=minutes)}
        assert is_over(replay, outcome) == bool(settled)
        impact = impact_of([{"_id": "o1", "status": "PENDING", "settled": each} for each in settled])
        assert impact.all_settled == (bool(settled) and all(settled))
        return refresh_seconds(replay, outcome, impact if settled else None, NOW)

    handled, failed, unknown = ReplayOutcome(2), ReplayOutcome(0, 2), ReplayOutcome(1, 0, 1)
    assert every("running", handled) == every("done", unknown) == 2
    assert every("done", unknown, minutes=11) == 30
    assert every("done", handled, True, False) == every("stopped", failed, False) == 2
    assert every("done", handled, True, True) is None
    assert every("done", handled, False, minutes=11) is None, "one that waits for something else is no news"
    assert every("done", ReplayOutcome()) is None
