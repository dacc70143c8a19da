"""The pure functions about dead letters: fingerprints, words, filters, times, and the message of a replay."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from operations.dead_letters.careful import end_of_step, is_end_of_step
from operations.dead_letters.editing import InvalidBodyError, check_body
from operations.dead_letters.filters import Filters, query, until_now
from operations.dead_letters.fingerprint import fingerprint
from operations.dead_letters.letter import (
    MOST_WORDS,
    content_type,
    identity,
    read_failure,
    record_of,
    replay_envelope,
    why_foreign,
    words,
)
from operations.dead_letters.times import read_time
from operations.reading.cursors import read_cursor, write_cursor
from shared.bus import Delivery
from shared.bus.amqp.frames import write_headers
from shared.bus.failures import dead_letter
from shared.bus.patterns import pattern
from shared.bus.replays import handled_notice
from shared.errors import PoisonError
from shared.topology import (
    DEAD_LETTERS,
    FORMER_RETRY_QUEUES,
    INBOX_EXCHANGE,
    INVENTORY_INBOX,
    ORDER_INBOX,
    PAYMENT_INBOX,
)

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
FORMER = FORMER_RETRY_QUEUES[-1]


def delivery(body: bytes = b'{"orderId": "o1"}', **changes: Any) -> Delivery:
    fields: dict[str, Any] = {
        "body": body,
        "queue": DEAD_LETTERS,
        "exchange": DEAD_LETTERS,
        "routing_key": "payment.refund",
        "type": "payment.refund",
        "correlation_id": "o1",
        "message_id": "m1",
        "redelivered": False,
        "headers": {"x-queue": PAYMENT_INBOX},
        "receipt": None,
    }
    return Delivery(**(fields | changes))


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("order 5f0c2b1e9d is not known", "order # is not known"),
        ("'p1' and \"p2\" are gone", "# and # are gone"),
        ("cannot connect to 10.0.0.7:27017", "cannot connect to #"),
        ("GET https://provider.example/api?x=1, and again", "GET #, and again"),
        ("items.0.quantity: Not an integer (got {'a': [1]}); x", "items.#.quantity: Not an integer (got #); x"),
        ("failed at 2026-01-31T09:30:00.250Z", "failed at #"),
        ("mail to ann@example.org bounced", "mail to # bounced"),
        ("took 3.5 s, 17 times", "took # s, # times"),
        ("  many\n\n lines\t", "many lines"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_pattern_is_a_message_without_its_variable_parts(message: str, left: str) -> None:
    assert pattern(message) == left


def test_known_ids_of_any_shape_are_removed() -> None:
    assert pattern("order teapot is late", ["teapot", "", "is"]) == "order # is late"


def test_the_pattern_of_a_hostile_message_is_fast() -> None:
    for hostile in ("'" * 100_000, "a@" * 50_000, "1" * 100_000, "#" * 100_000, "(got " * 20_000):
        assert len(pattern(hostile)) <= 500


def test_another_queue_type_or_error_is_another_group() -> None:
    groups = {
        fingerprint("a.inbox", "a", "E", "m"),
        fingerprint("b.inbox", "a", "E", "m"),
        fingerprint("a.inbox", "b", "E", "m"),
        fingerprint("a.inbox", "a", "F", "m"),
        fingerprint("a.inbox", "a", "E", "n"),
        fingerprint("a.inboxa", "", "E", "m"),
    }
    assert len(groups) == 6


def test_words_are_indexed_whole_and_in_parts() -> None:
    assert words('{"orderId": "Order-7F_a", "n": 1.5}') == ["orderid", "order-7f_a", "order", "7f", "a", "n", "1", "5"]


@given(st.binary(max_size=500))
def test_any_body_can_be_recorded(body: bytes) -> None:
    letter = delivery(body, headers={}, type=None, message_id=None, correlation_id=None)
    failure = read_failure(letter, NOW)
    record = record_of(identity(letter, failure), letter, failure, NOW)
    assert record["body"] == body
    assert len(record["words"]) <= MOST_WORDS
    bson.encode(record)


HEADER_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=10,
)
OWN = ("x-queue", "x-error-type", "x-error-message", "x-attempts", "x-failed-at", "x-death", "x-replay-of", "other")


@given(st.dictionaries(st.sampled_from(OWN), HEADER_VALUES))
@example({"x-attempts": 2**63})
def test_any_headers_can_be_recorded_and_replayed(headers: dict[str, Any]) -> None:
    letter = delivery(headers=headers)
    failure = read_failure(letter, NOW)
    record = record_of(identity(letter, failure), letter, failure, NOW)
    assert bson.decode(bson.encode(record))["_id"] == record["_id"]
    assert record["lastFailedAt"] <= NOW
    assert record["firstFailedAt"] <= record["lastFailedAt"]
    assert record["attempts"] >= 1
    sent = replay_envelope(record, "r1", b"{}")
    assert not {name for name in sent.headers if name.startswith(("x-error", "x-attempts", "x-death", "x-failed"))}


def test_a_replay_never_changes_the_type_of_a_message() -> None:
    """Its type is the original routing key, whatever its sender claimed: consumers trust the type of a replay."""
    letter = delivery(type="payment.processed", routing_key="stock.reserved", headers={"x-queue": ORDER_INBOX})
    record = record_of("l1", letter, read_failure(letter, NOW), NOW)
    sent = replay_envelope(record, "r1", b"{}")
    assert (sent.exchange, sent.routing_key, sent.type) == ("", ORDER_INBOX, "stock.reserved")
    with pytest.raises(InvalidBodyError, match="status"):
        check_body(record, b'{"orderId": "o1", "status": "PROCESSED", "transactionId": "t1"}')


def test_a_replay_has_header_names_that_fit_and_no_copies() -> None:
    letter = delivery(headers={"\0" * 64: {"\0" * 64: 1}, "CC": ["a"], "BCC": ["b"]})
    failure = read_failure(letter, NOW)
    sent = replay_envelope(record_of("l1", letter, failure, NOW), "r1", b"{}")
    assert not {"CC", "BCC"} & set(sent.headers)
    assert write_headers(sent.headers)


def test_counters_of_the_broker_do_not_identify_a_message_without_an_id() -> None:
    def known_as(**headers: Any) -> str:
        letter = delivery(message_id=None, headers=headers)
        return identity(letter, read_failure(letter, NOW))

    assert known_as() == known_as(**{"x-delivery-count": 1}) == known_as(**{"x-acquired-count": 2})


def test_a_dead_letter_of_our_own_consumer_is_read_as_it_was_written() -> None:
    failed = delivery(queue=PAYMENT_INBOX, headers={"x-attempts": 4, "traceparent": "00-1-2-01"})
    written = dead_letter(failed, PoisonError("no such order"), NOW)
    headers = dict(written.headers)
    failure = read_failure(delivery(headers=headers, routing_key=written.routing_key), NOW)
    assert (failure.queue, failure.routing_key, failure.service) == (PAYMENT_INBOX, "payment.refund", "payment")
    assert (failure.error.type, failure.error.message, failure.attempts) == ("PoisonError", "no such order", 5)
    assert (failure.first_failed_at, failure.failed_at) == (NOW, NOW)
    assert (failure.order_id, failure.message_id, failure.replay_of) == ("o1", "m1", None)


@pytest.mark.parametrize(
    ("returned_to", "queue", "service"),
    [("no.such", FORMER, "unknown"), (PAYMENT_INBOX, PAYMENT_INBOX, "payment")],
)
def test_a_retry_without_an_inbox_says_so(returned_to: str, queue: str, service: str) -> None:
    """If the missing inbox is one of ours, the letter can be replayed to it later."""
    death = {"reason": "expired", "queue": FORMER, "exchange": FORMER, "time": NOW}
    headers = {"x-attempts": 2, "x-routing-key": "payment.refund", "x-death": [death]}
    lost = delivery(exchange=INBOX_EXCHANGE, routing_key=returned_to, headers=headers)
    failure = read_failure(lost, NOW)
    assert (failure.queue, failure.service, failure.routing_key) == (queue, service, "payment.refund")
    assert failure.error.type == "Unroutable"
    assert failure.error.message == f"returned from a retry to '{returned_to}', but there is no such inbox"
    assert (failure.attempts, failure.order_id, failure.failed_at) == (2, "o1", NOW)


def test_a_header_of_the_sender_does_not_set_the_type_of_a_message_at_its_delivery_limit() -> None:
    """Replayed with another type, it could do what its routing key never allowed."""
    death = {"reason": "delivery_limit", "queue": ORDER_INBOX, "count": 1, "exchange": "ordersaga", "time": NOW}
    headers = {"x-routing-key": "payment.processed", "x-death": [death]}
    dead = delivery(exchange=DEAD_LETTERS, routing_key="stock.reserved", headers=headers)
    failure = read_failure(dead, NOW)
    assert (failure.routing_key, failure.error.type) == ("stock.reserved", "DeliveryLimit")


def test_the_order_is_the_one_in_the_body() -> None:
    assert read_failure(delivery(correlation_id="other"), NOW).order_id == "o1"
    assert read_failure(delivery(b"[]"), NOW).order_id == "o1"
    assert read_failure(delivery(b"[]", correlation_id="no id!"), NOW).order_id == ""


def test_the_content_type_is_detected() -> None:
    assert content_type(b"{}") == "application/json"
    assert content_type("Grüße\n".encode()) == "text/plain"
    assert content_type(b"\x00\x01") == content_type(b"\xff") == "application/octet-stream"


def test_only_handled_replays_are_reported() -> None:
    assert handled_notice(delivery()) is None
    notice = handled_notice(delivery(headers={"x-replay-of": "letter"}))
    assert notice is not None
    assert (notice.letter_id, notice.message_id, notice.correlation_id) == ("letter", "m1", "letter")
    for hostile in (7, None, "", "no id!", {"a": 1}, "x" * 100):
        assert handled_notice(delivery(headers={"x-replay-of": hostile})) is None
    assert handled_notice(delivery(message_id=None, headers={"x-replay-of": "letter"})) is None


def test_filters_are_stored_and_read() -> None:
    filters = Filters(ids=("a", "b"), status=("dead",), since=NOW, text="x")
    assert Filters.from_document(filters.as_document()) == filters
    assert filters.in_words() == "ids a, b; status dead; since 2026-01-31 12:00:00+00:00; text x"
    assert Filters().in_words() == "all"
    assert Filters(group="g", text="x").subject == "g"
    assert Filters(text="x" * 300).subject == f"text {'x' * 300}"[:200]


def test_what_fails_later_is_not_part_of_a_selection() -> None:
    hour = timedelta(hours=1)
    assert until_now(Filters(group="g"), NOW) == Filters(group="g", until=NOW)
    assert until_now(Filters(until=NOW - hour), NOW).until == NOW - hour
    assert until_now(Filters(until=NOW + hour), NOW).until == NOW
    assert until_now(Filters(ids=("a",)), NOW) == Filters(ids=("a",))


@pytest.mark.parametrize(
    ("rate", "ends"), [(100.0, [1, 6, 31, 131, 231]), (25.0, [1, 6, 31, 56]), (3.0, [1, 4, 7, 10]), (0.5, [1, 2, 3])]
)
def test_the_steps_of_a_careful_replay_grow_up_to_its_rate(rate: float, ends: list[int]) -> None:
    assert [sent for sent in range(ends[-1] + 1) if is_end_of_step(sent, rate)] == ends
    for sent in range(ends[-1]):
        assert end_of_step(sent, rate) == next(end for end in ends if end > sent)


def test_closed_letters_are_left_out_unless_they_are_named() -> None:
    assert query(Filters()) == {"status": {"$in": ["dead", "replaying", "pending"]}}
    assert query(Filters(ids=("a",))) == {"_id": {"$in": ["a"]}}
    assert query(Filters(status=("handled",))) == {"status": "handled"}


def test_a_search_uses_the_longest_word_first_and_never_a_hostile_pattern() -> None:
    assert query(Filters(text="a Teapot te*"))["$and"] == [
        {"words": "teapot"},
        {"words": {"$regex": "^te"}},
        {"words": "a"},
    ]
    assert query(Filters(text=".* ("))["$and"] == [{"words": "\0"}]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("90s", NOW - timedelta(seconds=90)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T10:00:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        ("0001-01-01", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_date_a_time_or_an_age(text: str, moment: datetime) -> None:
    assert read_time(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2 h", "-2h", "99999999d"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        read_time(text, NOW)


@pytest.mark.parametrize("text", ["999999d", "999999w", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_outside_of_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is outside of the years 1 to 9999"):
        read_time(text, NOW)


def test_a_cursor_is_written_and_read_and_nothing_else_is_one() -> None:
    assert read_cursor(write_cursor(NOW, "a")) == (NOW, "a")
    for nonsense in ("", "é", "W10", "WzEsIDJd", write_cursor(NOW, "a")[:-3], "Wzk5OTk5OTk5OTk5OTk5OTk5OSwiYSJd"):
        with pytest.raises(ValueError, match="cursor"):
            read_cursor(nonsense)


def test_an_edit_names_what_is_wrong_with_it() -> None:
    letter = edited_letter("payment.refund", PAYMENT_INBOX, b"not JSON", None)
    check_body(letter, b'{"orderId": "o1"}')
    with pytest.raises(InvalidBodyError) as refused:
        check_body(letter, b'{"orderId": "o 1", "reason": 3}')
    assert [field for field, _ in refused.value.errors] == ["orderId", "reason"]
    assert "(got 3)" in str(refused.value)


def edited_letter(type_: str, queue: str, body: bytes, correlation: str | None, *edits: bytes) -> dict[str, Any]:
    """A letter to compare an edit with."""
    return {
        "type": type_,
        "routingKey": type_,
        "queue": queue,
        "body": body,
        "edits": [{"body": edit} for edit in edits],
        "correlationId": correlation,
    }


def refused_fields(letter: dict[str, Any], body: bytes) -> dict[str, str]:
    try:
        check_body(letter, body)
    except InvalidBodyError as refused:
        return dict(refused.errors)
    return {}


ORDER = b'{"orderId": "%s", "items": []}'


def test_an_edit_cannot_move_a_message_to_another_order() -> None:
    letter = edited_letter("stock.release", INVENTORY_INBOX, ORDER % b"A", "A")
    assert refused_fields(letter, ORDER % b"A") == {}
    reason = refused_fields(letter, ORDER % b"B")["orderId"]
    assert "'B'" in reason
    assert "must stay 'A'" in reason
    # A receiver reads either spelling of a name.
    assert list(refused_fields(letter, b'{"order_id": "B"}')) == ["orderId"]
    # As for receivers, the body counts, not the correlation id.
    assert refused_fields(letter | {"correlationId": "B"}, ORDER % b"B")


@pytest.mark.parametrize("body", [b"not JSON", b"\xff", b"[]", b"{}", b'{"orderId": 7}', b'{"orderId": "no id!"}'])
def test_where_the_message_names_no_order_the_correlation_id_does(body: bytes) -> None:
    letter = edited_letter("stock.release", INVENTORY_INBOX, body, "A")
    assert refused_fields(letter, ORDER % b"A") == {}
    assert list(refused_fields(letter, ORDER % b"B")) == ["orderId"]
    for nothing in (None, "", "no id!"):
        assert refused_fields(letter | {"correlationId": nothing}, ORDER % b"B") == {}
    once = edited_letter("stock.release", INVENTORY_INBOX, body, None, ORDER % b"A")
    assert list(refused_fields(once, ORDER % b"B")) == ["orderId"]


def test_an_edit_cannot_change_the_run_or_the_transaction_either() -> None:
    cancel = edited_letter("provisioning.cancel", "provisioning.inbox", b'{"orderId": "A", "run": 2}', "A")
    assert list(refused_fields(cancel, b'{"orderId": "A", "run": 3}')) == ["run"]
    assert list(refused_fields(cancel, b'{"orderId": "A"}')) == ["run"]
    first = edited_letter("provisioning.requested", "provisioning.inbox", b'{"orderId": "A", "userId": 7}', "A")
    request = b'{"orderId": "A", "userId": "u", "package": "p", "run": %d}'
    assert refused_fields(first, request % 1) == {}
    assert list(refused_fields(first, request % 2)) == ["run"]
    paid = edited_letter("payment.processed", "order.inbox", b'{"orderId": "A", "transactionId": "t1"}', "A")
    assert list(refused_fields(paid, b'{"orderId": "B", "transactionId": "t2"}')) == ["orderId", "transactionId"]


@given(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True))
def test_an_edit_is_accepted_for_the_same_order_only(old: str, new: str) -> None:
    letter = edited_letter("payment.refund", PAYMENT_INBOX, json.dumps({"orderId": old, "reason": 7}).encode(), old)
    assert (refused_fields(letter, json.dumps({"orderId": new}).encode()) == {}) == (old == new)


@pytest.mark.parametrize(
    ("user", "taken_by", "foreign"),
    [
        ("payment", "operations", False),  # its own inbox
        ("order", "operations", False),  # the broker's letter of a message that order may send
        ("inventory", "operations", True),
        ("guest", "operations", True),
        (None, "operations", True),
        (None, "deployer", True),
        (None, "guest", False),  # one user for all: nothing can be told apart
        ("guest", "guest", False),
        ("deployer", "operations", False),  # a replay by a command
        ("operations", "operations", False),
    ],
)
def test_a_letter_whose_sender_could_not_have_sent_the_message_is_foreign(
    user: str | None, taken_by: str, foreign: bool
) -> None:
    failure = read_failure(delivery(user_id=user), NOW, taken_by)
    assert (failure.user, failure.foreign) == (user, foreign)
    reason = why_foreign(record_of("l1", delivery(user_id=user), failure, NOW))
    assert (reason is not None) is foreign


def test_a_foreign_copy_is_another_letter_than_that_of_the_consumer() -> None:
    """Otherwise a sender that gets the same message could make the real letter pass for its own."""
    copies = [delivery(user_id=user) for user in ("payment", "inventory", "provisioning")]
    failures = [read_failure(copy, NOW, "operations") for copy in copies]
    assert len({identity(copy, failure) for copy, failure in zip(copies, failures, strict=True)}) == 3


def test_the_reason_of_a_foreign_letter_names_its_sender() -> None:
    failure = read_failure(delivery(user_id="inventory"), NOW, "operations")
    record = record_of("l1", delivery(user_id="inventory"), failure, NOW)
    assert why_foreign(record) == "it was sent as inventory, who has no right to send payment.refund to payment.inbox"
    unsigned = record_of("l2", delivery(), read_failure(delivery(), NOW, "operations"), NOW)
    assert why_foreign(unsigned) == "it does not say who sent it, as messages of an earlier release do not"


def test_a_message_for_a_missing_retry_queue_comes_from_its_inbox() -> None:
    lost = delivery(exchange="payment.retry.5s", headers={"x-attempts": 1, "x-queue": "order.inbox"})
    failure = read_failure(lost, NOW)
    assert (failure.queue, failure.routing_key, failure.error.type) == (PAYMENT_INBOX, "payment.refund", "Unroutable")
