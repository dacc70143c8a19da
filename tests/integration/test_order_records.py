"""The orders collection, over both drivers, and the handlers over it, with several workers at once."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from order_service.deadlines import after_intent
from order_service.events import CancelRequested
from order_service.handlers import AnswerHandlers
from order_service.order import HistoryEntry, Order, Status
from order_service.orders import (
    COLLECTION,
    MAX_HISTORY,
    Change,
    CountedFailures,
    Filter,
    NewRecord,
    Orders,
    _beyond,
    _query,
)
from order_service.saga import SAGA, SAGA_VERSION
from order_service.schema import SCHEMA
from shared import contracts as c
from shared.clock import utc_now
from shared.contracts.inventory import ServerSpecification
from shared.contracts.provisioning import Server
from shared.errors import NewerOrderError, PoisonError
from shared.schema import prepare
from tests.support.builders import TIMEOUTS, an_order, connected


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture(params=["pymongo", "motor", "memory"])
async def orders(request: pytest.FixtureRequest, mongodb_url: str, database_prefix: str) -> AsyncIterator[Orders]:
    async with connected(mongodb_url, f"{database_prefix}_orders", request.param) as database:
        await prepare(database, SCHEMA)
        yield Orders(database[COLLECTION])


@pytest.fixture
async def workers(mongodb_url: str, database_prefix: str) -> AsyncIterator[list[AnswerHandlers]]:
    """Three order services: separate connections, caches and clocks."""
    name = f"{database_prefix}_orders"
    async with (
        connected(mongodb_url, name) as first,
        connected(mongodb_url, name) as second,
        connected(mongodb_url, name) as third,
    ):
        yield [AnswerHandlers(Orders(database[COLLECTION]), TIMEOUTS, utc_now) for database in (first, second, third)]


async def insert(orders: Orders, *new: Order) -> None:
    assert await orders.insert([NewRecord(order) for order in new]) == set()


async def stored(orders: Orders, order: Order) -> Order:
    return (await orders.load([order.order_id]))[order.order_id]


async def test_an_order_comes_back_as_it_was_stored(orders: Orders) -> None:
    order = an_order(
        stock_status="RESERVED",
        fulfilment="vps",
        provisioning_spec=ServerSpecification(package="103.181.91", package_id="7", ram=2048),
        provisioning_status="IN_PROGRESS",
        provisioning_run=2,
        progress="buy/1",
        progress_sequence=7,
        server=Server(ip="103.181.91.50", username="root", expires_at="2027-01-31"),
        unpublished=True,
        due_at=utc_now(),
    )
    await insert(orders, order)
    assert await stored(orders, order) == order


async def test_inserting_again_says_which_were_there_and_changes_nothing(orders: Orders) -> None:
    first, second = an_order(), an_order()
    await insert(orders, first)
    known = await orders.insert([NewRecord(replace(first, user_id="somebody else")), NewRecord(second)])
    assert known == {first.order_id}
    assert (await stored(orders, first)).user_id == "u1"
    assert await stored(orders, second) == second


async def test_a_change_applies_only_to_the_state_it_was_decided_on(orders: Orders) -> None:
    order = an_order()
    await insert(orders, order)
    now = utc_now()
    cancelled = SAGA.advance(order, CancelRequested("first"), now)
    paid = SAGA.advance(order, c.PaymentProcessed(order_id=order.order_id, transaction_id="tx"), now)
    assert cancelled.entry
    assert paid.entry
    assert await orders.apply([Change(order, cancelled.order, (cancelled.entry,))])
    assert not await orders.apply([Change(order, paid.order, (paid.entry,))])
    current = await stored(orders, order)
    assert (current.status, current.payment_status, current.version) == (Status.CANCELLED, "PENDING", 1)
    document = await orders.document(order.order_id)
    assert document
    assert [entry["event"] for entry in document["history"]] == ["order.created", "order.cancel_requested"]


async def test_fields_that_become_empty_are_removed(orders: Orders) -> None:
    order = an_order(unpublished=True, due_at=utc_now())
    await insert(orders, order)
    after = replace(order, unpublished=False, due_at=None, status=Status.CANCELLED)
    assert await orders.apply([Change(order, after, (HistoryEntry(utc_now(), "x", Status.CANCELLED),))])
    document = await orders.document(order.order_id)
    assert document
    assert "dueAt" not in document
    assert "unpublished" not in document


async def test_published_orders_wait_for_their_deadline_and_for_their_answers(orders: Orders) -> None:
    now = utc_now()
    pending = an_order(unpublished=True, due_at=now)
    cancelled = an_order(unpublished=True, due_at=now, status=Status.CANCELLED)
    moved_on = an_order(unpublished=True, due_at=now, status=Status.CANCELLED)
    await insert(orders, pending, cancelled, moved_on)
    settled = an_order(unpublished=True, due_at=now, status=Status.CANCELLED, settled=True)
    await insert(orders, settled)
    of = [(order.order_id, 0) for order in (pending, cancelled, settled)]
    again = now + timedelta(seconds=30)
    await orders.mark_published([*of, (moved_on.order_id, 7)], again)
    out: dict[str, Any] = {"unpublished": False, "version": 1}
    assert await stored(orders, pending) == replace(pending, due_at=pending.deadline, resend_at=again, **out)
    assert await stored(orders, cancelled) == replace(cancelled, due_at=None, resend_at=again, **out)
    assert await stored(orders, settled) == replace(settled, due_at=None, **out)
    assert await stored(orders, moved_on) == moved_on


async def test_a_note_about_an_earlier_version_does_not_mark_a_later_one_as_published(orders: Orders) -> None:
    """A cancellation, decided while `order.created` was unpublished, meets the note that this is published."""
    now = utc_now()
    order = an_order(unpublished=True, due_at=now)
    await insert(orders, order)
    step = SAGA.advance(order, CancelRequested("changed my mind"), now)
    cancelled = after_intent(step.order, now, TIMEOUTS)
    await orders.mark_published([(order.order_id, 0)], now)
    assert not await orders.apply([Change(order, cancelled, ())]), "it has to be decided again"
    current = await stored(orders, order)
    again = after_intent(SAGA.advance(current, CancelRequested("changed my mind"), now).order, now, TIMEOUTS)
    change = Change(current, again, ())
    assert await orders.apply([change])
    await orders.mark_published([(order.order_id, 0)], now)
    current = await stored(orders, order)
    assert current == change.stored
    assert current.unpublished
    await orders.mark_published([(order.order_id, current.version)], now)
    assert await orders.due(now + timedelta(days=1), 10) == []


async def test_unpublished_orders_are_due_at_once_also_if_an_answer_to_a_part_has_changed_them(orders: Orders) -> None:
    """The message for one service was published, the one for the other was not, and the answer came first."""
    now = utc_now()
    later = now + timedelta(seconds=10)
    unpublished, answered = (an_order(unpublished=True, due_at=later) for _ in range(2))
    published = an_order(due_at=later)
    await insert(orders, unpublished, answered, published)
    assert await orders.apply([Change(answered, replace(answered, version=1, transaction_id="t"), ())])

    await orders.hasten([unpublished.order_id, answered.order_id, published.order_id], now)

    assert {order.order_id for order in await orders.due(now, 10)} == {unpublished.order_id, answered.order_id}


async def test_the_longest_overdue_orders_come_first(orders: Orders) -> None:
    now = utc_now()
    late, later = (an_order(due_at=now - timedelta(seconds=s)) for s in (2, 1))
    await insert(orders, later, late, an_order(due_at=now + timedelta(seconds=5)), an_order())
    assert [order.order_id for order in await orders.due(now, 10)] == [late.order_id, later.order_id]
    assert len(await orders.due(now, 1)) == 1


async def test_a_time_to_send_again_is_set_only_where_the_order_has_not_moved_on(orders: Orders) -> None:
    now = utc_now()
    late, later, moved_on, answered = (an_order(resend_at=now - timedelta(seconds=s)) for s in (4, 3, 2, 1))
    await insert(orders, later, late, moved_on, answered, an_order(resend_at=now + timedelta(seconds=5)), an_order())
    assert [order.order_id for order in await orders.to_resend(now, 2)] == [late.order_id, later.order_id]
    step = SAGA.advance(moved_on, CancelRequested("changed my mind"), now)
    assert await orders.apply([Change(moved_on, replace(step.order, resend_at=now - timedelta(days=1)), ())])
    again = now + timedelta(minutes=1)
    await orders.schedule_resend([(late, again), (later, again), (moved_on, again), (answered, None)])
    assert [order.order_id for order in await orders.to_resend(now, 9)] == [moved_on.order_id]
    assert (await stored(orders, answered)).resend_at is None
    assert len(await orders.to_resend(again, 9)) == 4


async def test_unsettled_orders_of_earlier_versions_are_found(orders: Orders) -> None:
    now = utc_now()
    provisioning = an_order(status=Status.PROVISIONING)
    cancelled = an_order(status=Status.CANCELLED)
    given_up = an_order(status=Status.FAILED, compensating=True)
    pending = an_order(due_at=now)
    held = an_order(status=Status.FAILED, due_at=now)
    unpublished = an_order(status=Status.CANCELLED, unpublished=True, due_at=now)
    known = an_order(status=Status.CANCELLED, resend_at=now + timedelta(seconds=5))
    settled = an_order(status=Status.CANCELLED, settled=True)
    await insert(orders, provisioning, cancelled, given_up, pending, held, unpublished, known, settled)
    now = utc_now()
    assert await orders.adopt(now) == 4
    found = {order.order_id for order in await orders.to_resend(now, 10)}
    assert found == {order.order_id for order in (provisioning, cancelled, given_up, pending)}
    assert await orders.adopt(now) == 0


async def test_a_history_is_bounded(orders: Orders) -> None:
    order = an_order()
    await insert(orders, order)
    for _ in range(2):
        lines = tuple(HistoryEntry(utc_now(), f"line {number}", Status.PENDING) for number in range(MAX_HISTORY // 2))
        assert await orders.apply([Change(order, replace(order, user_id="u1"), lines)])
        order = await stored(orders, order)
    document = await orders.document(order.order_id)
    assert document
    assert len(document["history"]) == MAX_HISTORY
    assert document["history"][0]["event"] == "order.created", (
        "the first lines stay: what a stream has sent keeps its number"
    )


async def test_pages_hold_every_order_once(orders: Orders) -> None:
    now = utc_now()
    same_moment = [an_order(now=now) for _ in range(5)]
    earlier = [an_order(now=now - timedelta(seconds=n)) for n in range(1, 6)]
    others = [an_order(user_id="u2")]
    await insert(orders, *same_moment, *earlier, *others)
    newest_first = await listed(orders, Filter(user_id="u1"))
    assert sorted(newest_first) == sorted(order.order_id for order in same_moment + earlier)
    assert newest_first[5:] == [order.order_id for order in earlier]
    assert await listed(orders, Filter(user_id="u1"), oldest_first=True) == newest_first[::-1]


async def listed(orders: Orders, wanted: Filter, limit: int = 3, **how: Any) -> list[str]:
    """Return the ids of all pages of a list."""
    seen: list[str] = []
    after = None
    while page := await orders.page(wanted, after=after, limit=limit, **how):
        seen.extend(document["_id"] for document in page)
        after = (page[-1]["createdAt"], page[-1]["_id"])
    return seen


@pytest.mark.parametrize("oldest_first", [False, True])
async def test_pages_stay_stable_while_orders_are_placed(orders: Orders, oldest_first: bool) -> None:
    now = utc_now()
    at_first = [an_order(now=now + timedelta(milliseconds=number // 2)) for number in range(10)]
    await insert(orders, *at_first)
    seen: list[str] = []
    after = None
    while page := await orders.page(Filter(), after=after, limit=3, oldest_first=oldest_first):
        seen.extend(document["_id"] for document in page)
        after = (page[-1]["createdAt"], page[-1]["_id"])
        if len(seen) < 30:
            await insert(orders, an_order(now=now + timedelta(seconds=len(seen))))
    assert len(seen) == len(set(seen)), "none comes twice"
    assert {order.order_id for order in at_first} <= set(seen), "none is left out"


async def test_a_list_has_the_orders_that_meet_every_condition(orders: Orders) -> None:
    now = utc_now()
    cancelled = an_order(now=now - timedelta(hours=1), status=Status.CANCELLED, failure_reason="a")
    failed = an_order(now=now, status=Status.FAILED, failure_reason="a")
    other = an_order(now=now, status=Status.FAILED, failure_reason="b", user_id="u2")
    new = an_order(now=now + timedelta(hours=1))
    await insert(orders, cancelled, failed, other, new)

    async def assert_found(wanted: Filter, *expected: Order, **how: Any) -> None:
        assert sorted(await listed(orders, wanted, **how)) == sorted(order.order_id for order in expected)

    await assert_found(Filter(failure_reason="a"), cancelled, failed)
    await assert_found(Filter(statuses=(Status.FAILED, Status.PENDING)), failed, other, new)
    await assert_found(Filter(created_from=now, created_to=now + timedelta(hours=1)), failed, other)
    await assert_found(Filter(created_to=now), cancelled)
    await assert_found(Filter(failure_reason="a", statuses=(Status.FAILED,), created_from=now), failed)
    await assert_found(Filter(failure_reason="b", user_id="u1"))
    await assert_found(Filter(user_id="u2"), visible={"ownerId": None, "userId": "u1"})


WANTED = {
    "of an owner": Filter(),
    "in some statuses": Filter(statuses=(Status.FAILED, Status.CANCELLED)),
    "of a time": Filter(created_from=utc_now() - timedelta(minutes=5), created_to=utc_now() + timedelta(days=1)),
    "with a reason": Filter(failure_reason="a"),
    "of a user": Filter(user_id="u1"),
}


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
async def test_a_list_of_an_owner_reads_little_more_than_its_page(
    mongodb_url: str, database_prefix: str, wanted: Filter, direction: int
) -> None:
    """Beside three orders of the owner there are many: of others, and of the owner before the last page."""
    name = f"{database_prefix}_orders"
    async with connected(mongodb_url, name) as database:
        await prepare(database, SCHEMA)
        orders = Orders(database[COLLECTION])
        now = utc_now()
        ended: dict[str, Any] = {"status": Status.FAILED, "failure_reason": "a"}
        before = [an_order(owner_id="shop", now=now - direction * timedelta(minutes=n), **ended) for n in range(5, 65)]
        await insert(orders, *(an_order(owner_id="rival", now=now, user_id="u9", **ended) for _ in range(60)))
        await insert(orders, *before, *(an_order(owner_id="shop", now=now, **ended) for _ in range(3)))
        after = (now - direction * timedelta(seconds=1), "")
        query = {**_query(wanted), "ownerId": "shop", "$and": _beyond(after, oldest_first=direction == 1)}
        query["$and"] += [{"userId": wanted.user_id}] if wanted.user_id else []
        command = {
            "find": COLLECTION,
            "filter": query,
            "sort": {"createdAt": direction, "_id": direction},
            "limit": 51,
        }
        explained = await database.command({"explain": command, "verbosity": "executionStats"})
        figures = explained["executionStats"]
        assert figures["nReturned"] == 3
        assert figures["totalDocsExamined"] <= 5
        assert "COLLSCAN" not in str(explained["queryPlanner"]["winningPlan"])


async def test_failures_are_counted_by_status_reason_and_code(orders: Orders) -> None:
    def failed(reason: str, status: Status = Status.CANCELLED, **fields: Any) -> Order:
        return an_order(status=status, failure_reason=reason, **fields)

    declined: dict[str, Any] = {"failure_code": "card_declined"}
    former: dict[str, Any] = {"cause": "payment.failed"}  # stored by a release that knew no codes
    await insert(
        orders,
        *(failed("a", **declined), failed("a", **declined), failed("a", **former), failed("b", **declined)),
        *(failed("a", Status.FAILED), an_order()),
    )
    expected = [
        CountedFailures(2, "CANCELLED", "a", "card_declined"),
        CountedFailures(1, "CANCELLED", "a", "payment_refused"),
        CountedFailures(1, "CANCELLED", "b", "card_declined"),
        CountedFailures(1, "FAILED", "a", "other"),
    ]
    assert await orders.count_failures(after=None, limit=10) == expected
    for place, after in enumerate(expected):
        assert await orders.count_failures(after=after, limit=10) == expected[place + 1 :]


async def test_both_answers_in_one_batch_complete_the_join(orders: Orders) -> None:
    order = an_order()
    await insert(orders, order)
    handlers = AnswerHandlers(orders, TIMEOUTS, utc_now)
    messages = await handlers.advance_orders(
        [c.StockReserved(order_id=order.order_id), c.PaymentProcessed(order_id=order.order_id, transaction_id="tx")]
    )
    assert [message.routing_key for message in messages] == ["order.confirmed"]
    current = await stored(orders, order)
    assert current.status is Status.CONFIRMED
    assert current.due_at is None


async def test_both_answers_at_the_same_instant_on_two_workers(
    workers: list[AnswerHandlers], mongodb_url: str, database_prefix: str
) -> None:
    """The parallel join: of two workers that both read PENDING, one loses its write and sees the other's answer."""
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        orders = Orders(database[COLLECTION])
        for _ in range(50):
            order = an_order()
            await insert(orders, order)
            both = await asyncio.gather(
                workers[0].advance_orders([c.StockReserved(order_id=order.order_id)]),
                workers[1].advance_orders([c.PaymentProcessed(order_id=order.order_id, transaction_id="tx")]),
            )
            sent = [message.routing_key for messages in both for message in messages]
            assert sent == ["order.confirmed"]
            assert (await stored(orders, order)).status is Status.CONFIRMED


async def test_answers_of_many_orders_spread_over_workers_with_repetitions(
    workers: list[AnswerHandlers], mongodb_url: str, database_prefix: str
) -> None:
    """Every answer two or three times, in any order, in batches on three workers: one outcome, everything settles."""
    rng = random.Random(7)
    async with connected(mongodb_url, f"{database_prefix}_orders") as database:
        orders = Orders(database[COLLECTION])
        confirmed, refused = ([an_order() for _ in range(60)] for _ in range(2))
        await insert(orders, *confirmed, *refused)
        answers: list[c.OrderMessage] = []
        for order in confirmed:
            answers += [c.StockReserved(order_id=order.order_id)] * 2
            answers += [c.PaymentProcessed(order_id=order.order_id, transaction_id="tx")] * 2
        for order in refused:
            answers += [c.StockReserved(order_id=order.order_id), c.StockReleased(order_id=order.order_id)] * 2
            answers += [c.PaymentFailed(order_id=order.order_id, reason="The card was declined")] * 2
        rng.shuffle(answers)
        batches = [answers[start : start + 40] for start in range(0, len(answers), 40)]
        await asyncio.gather(*(workers[n % 3].advance_orders(batch) for n, batch in enumerate(batches)))
        final = await orders.load(order.order_id for order in confirmed + refused)
        assert {final[order.order_id].status for order in confirmed} == {Status.CONFIRMED}
        assert {final[order.order_id].status for order in refused} == {Status.CANCELLED}
        assert all(final[order.order_id].settled for order in confirmed + refused)


async def test_orders_of_a_newer_saga_are_left_to_newer_processes(orders: Orders) -> None:
    now = utc_now()
    waiting = {"due_at": now, "resend_at": now}
    newer, known = an_order(saga_version=SAGA_VERSION + 1, **waiting), an_order(saga_version=SAGA_VERSION, **waiting)
    unscheduled = an_order(saga_version=SAGA_VERSION + 1)
    await insert(orders, newer, known, unscheduled)
    handlers = AnswerHandlers(orders, TIMEOUTS, utc_now)
    with pytest.raises(NewerOrderError, match=rf"version {SAGA_VERSION + 1} of the saga, this process knows"):
        await handlers.advance_orders([c.StockReserved(order_id=newer.order_id)])
    assert [order.order_id for order in await orders.due(now, 10)] == [known.order_id]
    assert [order.order_id for order in await orders.to_resend(now, 10)] == [known.order_id]
    assert await orders.adopt(now + timedelta(seconds=1)) == 0
    document = await orders.document(newer.order_id)
    assert document is not None
    assert (document["sagaVersion"], document["version"], document["stockStatus"]) == (SAGA_VERSION + 1, 0, "PENDING")


async def test_an_order_of_a_release_that_stored_no_version_is_of_the_first(orders: Orders) -> None:
    order = an_order()
    await insert(orders, order)
    await orders._collection.update_one({"_id": order.order_id}, {"$unset": {"sagaVersion": ""}})
    assert (await stored(orders, order)).saga_version == 1


async def test_an_answer_for_an_unknown_order_is_poison(orders: Orders) -> None:
    handlers = AnswerHandlers(orders, TIMEOUTS, utc_now)
    with pytest.raises(PoisonError, match=r"stock\.reserved for order nobody, which does not exist"):
        await handlers.advance_orders([c.StockReserved(order_id="nobody")])


async def test_a_failed_order_is_due_when_its_hold_ends(orders: Orders) -> None:
    order = an_order()
    await insert(orders, order)
    reserved = c.StockReserved(
        order_id=order.order_id, fulfilment="vps", provisioning=ServerSpecification(package="103.181.91")
    )
    handlers = AnswerHandlers(orders, TIMEOUTS, utc_now)
    before = utc_now()
    await handlers.advance_orders(
        [
            reserved,
            c.PaymentProcessed(order_id=order.order_id, transaction_id="tx"),
            c.ProvisioningFailed(order_id=order.order_id, reason="no server"),
        ]
    )
    current = await stored(orders, order)
    assert current.status is Status.FAILED
    assert current.due_at is not None
    assert before + TIMEOUTS.failed_hold <= current.due_at <= utc_now() + TIMEOUTS.failed_hold
