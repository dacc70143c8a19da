"""The decisions about webhooks: which event a message is, who hears of it, when it is attempted again."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from notification_service.delivery import Attempt, Next, Status, after_attempt
from notification_service.endpoint import (
    BOTH_SECRETS_FOR,
    MAX_SECRETS,
    Endpoint,
    Secret,
    check_url,
    with_new_secret,
)
from notification_service.endpoints import free_place
from notification_service.events import EVENT_TYPES, MESSAGES, Event, check_pattern, event_from, matches
from shared.contracts import Message, OrderConfirmed, OrderCreated, OrderFailed, OrderRefunded, PackageLowIps
from shared.contracts.orders import Item, PaymentInstruction
from shared.topology import INBOXES, NOTIFICATION_INBOX

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ORDER = {"orderId": "o1", "userId": "u1", "status": "FAILED"}
EVENT = Event("evt_1", "order.failed", "{}", owner_id="shop", user_id="u1", order_id="o1")


def failed(**changes: Any) -> OrderFailed:
    given = {"order_id": "o1", "user_id": "u1", "owner_id": "shop", "total_amount": 1000, "at": NOW, "order": ORDER}
    return OrderFailed(**{**given, **changes})


def endpoint(**changes: Any) -> Endpoint:
    return replace(
        Endpoint("wh_1", "https://shop.example", ("order.*",), (Secret(b"1", NOW),), NOW, NOW, owner_id="shop"),
        **changes,
    )


def answered(status: int | None) -> Attempt:
    return Attempt(NOW, status, None if status else "No answer", "", 0.1)


def test_every_message_of_the_inbox_is_an_event() -> None:
    assert set(INBOXES[NOTIFICATION_INBOX]) == set(MESSAGES)


def test_the_same_occurrence_has_the_same_id_and_another_one_has_not() -> None:
    first = event_from(failed(), NOW)
    assert event_from(failed(order={**ORDER, "settled": True}), NOW + timedelta(days=1)).id == first.id
    others = [
        failed(at=NOW + timedelta(seconds=1)),
        failed(order_id="o2"),
        failed(at=None),
        OrderConfirmed(**failed().model_dump()),
    ]
    assert len({first.id, *(event_from(other, NOW).id for other in others)}) == 5


def test_refunds_of_an_order_are_told_apart_and_tell_the_order() -> None:
    first, second = (event_from(refunded(refund_id=each), NOW) for each in ("r1", "r2"))
    assert first.id != second.id
    assert json.loads(first.body)["data"] == {**ORDER, "refundId": "r1", "amount": 5}


def test_a_message_of_an_earlier_release_tells_what_it_has() -> None:
    old = OrderFailed.model_validate_json('{"orderId": "o1", "userId": "u1", "totalAmount": 10, "reason": "Sold out"}')
    event = event_from(old, NOW)
    assert json.loads(event.body) == {
        "type": "order.failed",
        "timestamp": "2026-01-31T09:30:00.000Z",
        "data": {"orderId": "o1", "userId": "u1", "totalAmount": 10, "reason": "Sold out"},
    }
    assert event.owner_id is None


def test_a_new_order_is_told_without_how_it_is_paid() -> None:
    body = event_from(created(payment=PaymentInstruction(token="tok_secret")), NOW).body
    assert "tok_secret" not in body
    assert json.loads(body)["data"]["totalAmount"] == 10


def created(**changes: Any) -> OrderCreated:
    item = Item(product_id="p1", quantity=1, price=1000)
    return OrderCreated(**{"order_id": "o1", "user_id": "u1", "items": (item,), "total_amount": 1000, **changes})


def refunded(**changes: Any) -> OrderRefunded:
    given = {"order_id": "o1", "user_id": "u1", "owner_id": "shop", "refund_id": "r1", "amount": 500, "order": ORDER}
    return OrderRefunded(**{**given, **changes})


def low(**changes: Any) -> PackageLowIps:
    return PackageLowIps(**{"package": "p", "ipv4": 1, **changes})


def timestamp(message: Message, recorded: datetime) -> str:
    text: str = json.loads(event_from(message, recorded).body)["timestamp"]
    return text


@pytest.mark.parametrize("make", [created, failed, refunded, low])
def test_an_event_says_when_it_was_and_not_when_it_is_recorded(make: Callable[..., Message]) -> None:
    assert timestamp(make(at=NOW), NOW + timedelta(hours=1)) == "2026-01-31T09:30:00.000Z"
    assert timestamp(make(at=None), NOW + timedelta(hours=1)) == "2026-01-31T10:30:00.000Z", "an earlier release"


def test_a_refund_of_an_earlier_release_was_when_its_order_changed() -> None:
    order = {**ORDER, "updatedAt": "2026-01-31T09:00:00.000Z"}
    assert timestamp(refunded(at=None, order=order), NOW) == "2026-01-31T09:00:00.000Z"


def test_an_order_is_created_once_and_a_package_becomes_low_as_often_as_it_does() -> None:
    later = NOW + timedelta(hours=1)
    assert event_from(created(at=NOW), NOW).id == event_from(created(), later).id
    assert event_from(low(at=NOW), NOW).id == event_from(low(at=NOW), later).id
    assert event_from(low(at=later), later).id != event_from(low(at=NOW), NOW).id
    assert event_from(low(), later).id == event_from(low(), NOW).id != event_from(low(), NOW + timedelta(days=1)).id


@pytest.mark.parametrize("pattern", ["*", "order.*", "package.*", *EVENT_TYPES])
def test_patterns_of_existing_events_are_allowed(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "order", "order.", "*.failed", "ord*", "order.lost", "stock.*", "order.**"])
def test_patterns_that_match_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        check_pattern(pattern)


def test_a_pattern_matches_whole_names() -> None:
    assert matches("order.*", "order.failed")
    assert matches("*", "package.low_ips")
    assert not matches("order.fail", "order.failed")


@pytest.mark.parametrize(
    ("changes", "event", "wanted"),
    [
        ({}, EVENT, True),
        ({"events": ("order.created",)}, EVENT, False),
        ({"user_id": "u1"}, EVENT, True),
        ({"user_id": "u2"}, EVENT, False),
        ({"owner_id": "another"}, EVENT, False),
        ({"owner_id": None}, EVENT, False),
        ({}, replace(EVENT, owner_id=None), False),
        ({"owner_id": None}, replace(EVENT, owner_id=None), True),
        ({"events": ("*",)}, replace(EVENT, for_staff=True), False),
        ({"events": ("*",), "for_staff": True, "owner_id": "us"}, replace(EVENT, for_staff=True), True),
    ],
)
def test_an_endpoint_hears_of_its_owners_events_only(changes: Any, event: Event, wanted: bool) -> None:
    assert endpoint(**changes).wants(event) is wanted


def test_a_replaced_secret_signs_for_a_day() -> None:
    rotated = with_new_secret(endpoint().secrets, b"2", NOW)
    assert rotated is not None
    changed = endpoint(secrets=rotated)
    assert changed.signing_secrets(NOW + BOTH_SECRETS_FOR - timedelta(seconds=1)) == [b"2", b"1"]
    assert changed.signing_secrets(NOW + BOTH_SECRETS_FOR) == [b"2"]


def test_rotations_do_not_pile_up_secrets() -> None:
    secrets: tuple[Secret, ...] = endpoint().secrets
    for number in range(MAX_SECRETS - 1):
        rotated = with_new_secret(secrets, bytes([number]), NOW)
        assert rotated is not None
        secrets = rotated
    assert with_new_secret(secrets, b"one more", NOW) is None
    later = with_new_secret(secrets, b"one more", NOW + BOTH_SECRETS_FOR)
    assert later is not None
    assert len(later) == 2


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/hooks?shop=1",
        "https://shop.example:8443",
        "https://[2606::1]/",
        "https://a_b.xn--shp-hoa.example./",
        f"https://{'a' * 63}.example/",
    ],
)
def test_urls_of_receivers_are_allowed(url: str) -> None:
    assert check_url(url, allow_private=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/",
        "ftp://shop.example/",
        "shop.example",
        "https://",
        "https:///path",
        "https://user@shop.example/",
        "https://user:password@shop.example/",
        "https://shop.example/#part",
        "https://.",
        "https://shop..example/",
        "https://-shop.example/",
        f"https://{'a' * 64}.example/",
        f"https://{'a.' * 127}example/",
        "https://<shop>/",
        "https://shop.example|/",
        "https://shop.example\\@8.8.8.8/",
        "https://8.8.8.8\\.shop.example/",
        "https://127.0.0.1%00.shop.example/",
        "https://%31%32%37.0.0.1/",
        "https://shop.example:443@8.8.8.8/",
        "https://[shop.example]/",
        "https://shop.example:0/",
        "https://shop.example:99999/",
        "https://shop.example/a b",
        "https://shöp.example/",
        "https://shop.example/\n",
        "https://[::1/",
        f"https://shop.example/{'x' * 2000}",
    ],
)
def test_urls_that_nothing_is_sent_to_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|is not)"):
        check_url(url, allow_private=False)


def test_http_is_for_tests() -> None:
    assert check_url("http://127.0.0.1:1/", allow_private=True)


@pytest.mark.parametrize(
    ("status", "tries", "following"),
    [
        (200, 1, Next(Status.DELIVERED)),
        (299, 9, Next(Status.DELIVERED)),
        (300, 1, Next(Status.PENDING, NOW + timedelta(seconds=10))),
        (199, 2, Next(Status.PENDING, NOW + timedelta(seconds=20))),
        (None, 2, Next(Status.PENDING, NOW + timedelta(seconds=20))),
        (500, 3, Next(Status.FAILED, failure_reason="All 3 attempts failed")),
        (410, 1, Next(Status.FAILED, failure_reason="The endpoint answered 410 Gone")),
    ],
)
def test_the_ladder_of_attempts(status: int | None, tries: int, following: Next) -> None:
    assert after_attempt(answered(status), tries, (5, 10), spread=2, ended=NOW) == following


def test_an_endpoint_that_has_failed_for_five_days_is_disabled() -> None:
    failing = endpoint(failing_since=NOW)
    assert not failing.has_failed_too_long(NOW + timedelta(days=5) - timedelta(seconds=1))
    assert failing.has_failed_too_long(NOW + timedelta(days=5))
    assert not endpoint().has_failed_too_long(NOW + timedelta(days=9))


@pytest.mark.parametrize(
    ("taken", "most", "place"),
    [
        ([], 2, 0),
        ([0], 2, 1),
        ([1], 2, 0),
        ([0, 1], 2, None),
        ([None], 2, 0),
        ([None, None], 2, None),
        ([0, None], 2, None),
        ([7, 0], 3, 1),
        ([7, 8, 9], 3, None),
    ],
)
def test_an_endpoint_gets_the_lowest_free_place_while_its_owner_has_fewer_than_allowed(
    taken: list[int | None], most: int, place: int | None
) -> None:
    assert free_place(taken, most) == place
