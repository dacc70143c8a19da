"""The cleanup's decisions: parsing an age, orders that are over, and reasons to keep their records."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from operations.cleanup.age import read_age
from operations.removal.removable import CANCELLED, Candidate, Document, is_over, why_kept
from tests.support.builders import records_of

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
OLD = NOW - timedelta(days=40)


@pytest.mark.parametrize(
    ("text", "days"),
    [("30d", 30), ("24h", 1), ("1440m", 1), ("86400s", 1), ("2w", 14), (" 30d ", 30), ("36500d", 36500)],
)
def test_ages(text: str, days: int) -> None:
    assert read_age(text) == timedelta(days=days)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *(
            (text, "is not a duration")
            for text in ("", "d", "30", "30 d", "-30d", "1.5d", "30D", "30days", "٣d", "9999999999d")
        ),
        *((text, "less than a day") for text in ("0d", "12h", "23h", "1439m", "86399s")),
        *((text, "more than") for text in ("36501d", "999999999w")),
    ],
)
def test_ages_that_are_rejected(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_age(text)


def an_order(**changes: Any) -> Document:
    return {"_id": "o1", "status": "CANCELLED", "settled": True, "updatedAt": OLD} | changes


def test_only_settled_cancelled_orders_are_over() -> None:
    for status in ("PENDING", "CONFIRMED", "PROVISIONING", "COMPLETED", "FAILED", "LOST", None):
        for settled, compensating in product((True, False, None), (True, False)):
            assert not is_over(an_order(status=status, settled=settled, compensating=compensating), [CANCELLED], NOW)
    assert is_over(an_order(), [CANCELLED], NOW)
    assert not is_over(an_order(settled=False), [CANCELLED], NOW)
    assert not is_over(an_order(updatedAt=NOW), [CANCELLED], NOW)
    assert not is_over(an_order(updatedAt=None), [CANCELLED], NOW)


INTENT = {"intentId": "pi_1", "chargedAt": OLD}
REFUNDED = {"outcome": "CHARGED", "refundedAt": OLD}
RELEASED = {"stock": {"status": "RELEASED"}, "payment": {"status": "REFUNDED"}}
GONE = Candidate(an_order(), RELEASED, REFUNDED, {"state": "FAILED"})


def test_an_order_that_holds_nothing_may_be_deleted() -> None:
    for stock, money in product(("FAILED", "RELEASED"), ("FAILED", "VOIDED", "REFUNDED")):
        assert why_kept(Candidate(an_order(), {"stock": {"status": stock}, "payment": {"status": money}}), NOW) is None
    assert why_kept(GONE, NOW) is None
    assert why_kept(GONE._replace(charge={"outcome": "DECLINED"}), NOW) is None
    assert why_kept(GONE._replace(charge={"outcome": "VOIDED"}), NOW) is None
    for intent in (INTENT | {"refundedAt": OLD}, {"intentId": "pi_1"}, {"reason": "declined"}, {"closedAt": OLD}):
        assert why_kept(GONE._replace(intent=intent), NOW) is None
    assert (
        why_kept(GONE._replace(job={"state": "FAILED", "purchase": {"asked": ["10.1.2.3"], "settled": True}}), NOW)
        is None
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"order": an_order(unpublished=True)}, "unpublished"),
        ({"payment": {"status": "REFUNDED", "unpublished": True}}, "unpublished"),
        ({"job": {"state": "FAILED", "outboxSince": OLD}}, "unpublished"),
        ({"stock": {"status": "RESERVED"}}, "stock"),
        ({"stock": None}, "stock"),
        ({"payment": {"status": "PROCESSED"}}, "payment"),
        ({"payment": {"status": "PENDING", "nextLookupAt": OLD}}, "payment"),
        ({"payment": {"status": "VOIDED", "nextLookupAt": OLD}}, "charge"),
        ({"payment": None}, "payment"),
        ({"charge": {"outcome": "CHARGED"}}, "gateway"),
        ({"intent": INTENT}, "gateway"),
        ({"moving": True}, "pending move"),
        ({"assigned": True}, "slot is assigned"),
        ({"letters": True}, "dead letter"),
        ({"holds": [{"_id": "hold:h", "status": "RESERVED"}]}, "hold"),
        ({"job": {"state": "COMPLETED"}}, "job"),
        ({"job": {"state": "WAITING"}}, "job"),
        ({"job": {}}, "job"),
        ({"job": {"state": "FAILED", "ip": "10.1.2.3"}}, "server"),
        ({"job": {"state": "FAILED", "wrongIps": ["10.1.2.3"]}}, "server"),
        ({"job": {"state": "FAILED", "purchase": {"asked": ["10.1.2.3"]}}}, "server"),
        ({"job": {"state": "FAILED", "purchase": {"asked": ["10.1.2.3"], "settled": False}}}, "server"),
        ({"addresses": [{"_id": "10.1.2.3", "wrong": True}]}, "server"),
        ({"locks": True}, "lock"),
    ],
)
def test_anything_held_or_unknown_keeps_all_records(change: dict[str, Any], reason: str) -> None:
    recorded = records_of(**{name: change.get(name, record) for name, record in RELEASED.items()})
    others = {name: value for name, value in change.items() if name not in RELEASED}
    kept = why_kept(GONE._replace(by_participant=recorded, **others), NOW)
    assert kept is not None
    assert reason in kept
