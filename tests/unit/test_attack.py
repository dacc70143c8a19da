"""The verdicts of `make attack`, and the selection of rows by name."""

from collections import Counter
from typing import Any

import pytest

from benchmarks.attack import MOST_BYTES, Measured, judge
from benchmarks.attack_rows import CLOSED, LEFT_OPEN, ROWS, SAMPLES, TAKEN, TRY_AGAIN, Outcome, Row, Target
from shared.topology import INBOXES


async def nothing(_target: Target) -> Outcome:
    return Counter()


ROW = Row("a row", nothing)
LIMITED = Row("a row at a limit", nothing, limited=True)


def measured(**changes: Any) -> Measured:
    fields: dict[str, Any] = {
        "outcome": Counter({"202": 1, "422": 3, CLOSED: 1, TAKEN: 1}),
        "slowest_seconds": 0.1,
        "peak_bytes": MOST_BYTES,
        "largest": "order",
    }
    return Measured(**{**fields, **changes})


def test_refusals_and_closed_connections_are_withstood() -> None:
    assert judge(ROW, measured()) == ()


@pytest.mark.parametrize("what", ["500", "502", "503", LEFT_OPEN, TRY_AGAIN, "it ended with OSError()"])
def test_a_failure_of_the_service_is_not(what: str) -> None:
    assert judge(ROW, measured(outcome=Counter({"200": 7, what: 2}))) == (f"2 times {what}",)


def test_an_overload_that_says_when_to_come_back_is_withstood_at_a_limit() -> None:
    assert judge(LIMITED, measured(outcome=Counter({TRY_AGAIN: 2}))) == ()
    assert judge(LIMITED, measured(outcome=Counter({"503": 2}))) == ("2 times 503",)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"peak_bytes": 400 << 20}, "order held 400 MiB"),
        ({"slowest_seconds": 0.75}, "another request took 750 ms"),
        ({"restarted": ("payment",)}, "payment restarted"),
        ({"unanswered": ("503 from there",)}, "503 from there"),
    ],
)
def test_what_others_feel_is_named(change: dict[str, Any], wrong: str) -> None:
    assert judge(ROW, measured(**change)) == (wrong,)


def test_every_row_has_a_unique_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_there_is_a_sample_of_every_message_that_an_inbox_takes() -> None:
    assert {message.routing_key for messages in INBOXES.values() for message in messages} <= SAMPLES.keys()
