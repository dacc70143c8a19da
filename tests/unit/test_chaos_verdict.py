"""What chaos calls lost, doubled, changed or not asked for: whatever is altered in a run without faults is found."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.records import Answer, Request, RequestKind
from chaos.shop import draw
from chaos.stored import Stored, StoredOrder, StoredPosting, StoredRefund
from chaos.verdict import Finding, compare

RETAINERS = ("r1", "r2")


@dataclass
class Run:
    """What clients asked for, what is stored, and which orders the audit saw."""

    requests: list[Request]
    orders: list[StoredOrder]
    postings: list[StoredPosting]
    holds: set[str]
    audited: set[str]

    def findings(self) -> list[Finding]:
        return compare(self.requests, Stored(self.orders, self.postings, frozenset(self.holds)), self.audited)

    def of(self, kind: RequestKind) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]


def accepted(key: str, kind: RequestKind, subject: str, answer_id: str, body: dict[str, object], times: int) -> Request:
    lost = Answer(0.0, None, error="no answer in time")
    return Request(key, kind, subject, body, [lost, *[Answer(1.0, 202, answer_id)] * times])


def whole_run(seed: int, clients: int) -> Run:
    """Return a run in which everything that clients asked for was done."""
    run = Run([], [], [], set(), set())
    for number in range(clients):
        visit = draw(seed, number, RETAINERS)
        times = 1 + visit.repeats
        if visit.what == "posting":
            key, retainer, amount = f"posting of {visit.customer}", visit.body["retainer"], visit.body["amount"]
            run.requests.append(accepted(key, "posting", retainer, f"answer {number}", {"amount": amount}, times))
            run.postings.append(StoredPosting(key, retainer, 100 * amount))
            continue
        body, hold = dict(visit.body), f"hold-{number}"
        if visit.is_held_first:
            run.requests.append(accepted(f"hold of {visit.customer}", "hold", visit.customer, hold, {}, 1))
            run.holds.add(hold)
            body["holdId"] = hold
        order_id = f"order-{number}"
        run.requests.append(accepted(f"order of {visit.customer}", "order", visit.customer, order_id, body, times))
        item = body["items"][0]
        order = StoredOrder(
            order_id,
            visit.customer,
            item["productId"],
            item["quantity"],
            100 * body["totalAmount"],
            "CONFIRMED",
            True,
            hold if visit.is_held_first else None,
        )
        run.orders.append(acted(run, order, number))
        run.audited.add(order_id)
    return run


def acted(run: Run, order: StoredOrder, number: int) -> StoredOrder:
    """Let the client ask for more; return the order that it has then."""
    match number % 4:
        case 1:
            run.requests.append(accepted(f"cancel {order.id}", "cancel", order.id, order.id, {}, 1))
            return replace(order, status="CANCELLED")
        case 2:
            run.requests.append(accepted(f"deliver {order.id}", "deliver", order.id, order.id, {}, 1))
            return replace(order, status="COMPLETED")
        case 3:
            refund = StoredRefund(f"refund-{number}", 500)
            run.requests.append(accepted(f"refund {number}", "refund", order.id, refund.id, {"amount": 5}, 2))
            return replace(order, refunds=(refund,))
    return order


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_nothing_is_found_if_all_is_as_clients_were_told(seed: int, clients: int) -> None:
    assert whole_run(seed, clients).findings() == []


def lose_an_order(run: Run, chance: random.Random) -> None:
    lost = run.orders.pop(chance.randrange(len(run.orders)))
    run.audited.discard(lost.id)


def double_an_order(run: Run, chance: random.Random) -> None:
    again = replace(chance.choice(run.orders), id="again")
    run.orders.append(again)
    run.audited.add(again.id)


def store_an_order_of_nobody(run: Run, chance: random.Random) -> None:
    run.orders.append(replace(chance.choice(run.orders), id="new", customer="nobody"))
    run.audited.add("new")


def change_an_order(run: Run, chance: random.Random) -> None:
    place = chance.randrange(len(run.orders))
    run.orders[place] = replace(run.orders[place], total=run.orders[place].total + 1)


def leave_an_order_unsettled(run: Run, chance: random.Random) -> None:
    place = chance.randrange(len(run.orders))
    run.orders[place] = replace(run.orders[place], settled=False)


def answer_with_another_id(run: Run, chance: random.Random) -> None:
    chance.choice(run.requests).answers.append(Answer(2.0, 202, "another"))


def answer_two_orders_with_one_id(run: Run, chance: random.Random) -> None:
    first, second = run.of("order")[:2]
    lost = second.accepted
    assert first.accepted is not None
    assert lost is not None
    second.answers[:] = [Answer(1.0, 202, first.accepted.id)]
    run.orders[:] = [order for order in run.orders if order.id != lost.id]


def refuse_an_order(run: Run, chance: random.Random) -> None:
    chance.choice(run.of("order")).answers[:] = [Answer(1.0, 422, error="no")]


def never_answer(run: Run, chance: random.Random) -> None:
    chance.choice(run.requests).answers[:] = [Answer(1.0, None, error="no answer in time")]


def forget_a_cancellation(run: Run, chance: random.Random) -> None:
    change_status(run, "CANCELLED", "CONFIRMED", chance)


def forget_a_delivery(run: Run, chance: random.Random) -> None:
    change_status(run, "COMPLETED", "CONFIRMED", chance)


def deliver_what_nobody_delivered(run: Run, chance: random.Random) -> None:
    change_status(run, "CONFIRMED", "COMPLETED", chance)


def change_status(run: Run, before: str, after: str, chance: random.Random) -> None:
    goods = [place for place, order in enumerate(run.orders) if order.status == before and order.product == "goods"]
    place = chance.choice(goods)
    run.orders[place] = replace(run.orders[place], status=after)


def refunded(run: Run, chance: random.Random) -> int:
    return chance.choice([place for place, order in enumerate(run.orders) if order.refunds])


def lose_a_refund(run: Run, chance: random.Random) -> None:
    place = refunded(run, chance)
    run.orders[place] = replace(run.orders[place], refunds=())


def change_a_refund(run: Run, chance: random.Random) -> None:
    place = refunded(run, chance)
    (refund,) = run.orders[place].refunds
    run.orders[place] = replace(run.orders[place], refunds=(replace(refund, amount=501),))


def fail_a_refund(run: Run, chance: random.Random) -> None:
    place = refunded(run, chance)
    (refund,) = run.orders[place].refunds
    run.orders[place] = replace(run.orders[place], refunds=(replace(refund, status="FAILED"),))


def refund_what_nobody_asked_for(run: Run, chance: random.Random) -> None:
    place = refunded(run, chance)
    (refund,) = run.orders[place].refunds
    run.orders[place] = replace(run.orders[place], refunds=(refund, replace(refund, id="more")))


def lose_a_posting(run: Run, chance: random.Random) -> None:
    run.postings.pop(chance.randrange(len(run.postings)))


def double_a_posting(run: Run, chance: random.Random) -> None:
    run.postings.append(chance.choice(run.postings))


def change_a_posting(run: Run, chance: random.Random) -> None:
    place = chance.randrange(len(run.postings))
    run.postings[place] = replace(run.postings[place], amount=1)


def post_what_nobody_asked_for(run: Run, chance: random.Random) -> None:
    run.postings.append(replace(chance.choice(run.postings), key="nobody's"))


def lose_a_hold(run: Run, chance: random.Random) -> None:
    run.holds.discard(chance.choice(sorted(run.holds)))


def audit_fewer_orders(run: Run, chance: random.Random) -> None:
    run.audited.discard(chance.choice(sorted(run.audited)))


def audit_other_orders(run: Run, chance: random.Random) -> None:
    """As many as were accepted, but not these."""
    audit_fewer_orders(run, chance)
    run.audited.add("of another stack")


ALTERATIONS: dict[Callable[[Run, random.Random], None], str] = {
    lose_an_order: "lost",
    double_an_order: "doubled",
    store_an_order_of_nobody: "not asked for",
    change_an_order: "changed",
    leave_an_order_unsettled: "unsettled",
    answer_with_another_id: "changed",
    answer_two_orders_with_one_id: "changed",
    refuse_an_order: "refused",
    never_answer: "never answered",
    forget_a_cancellation: "lost",
    forget_a_delivery: "lost",
    deliver_what_nobody_delivered: "not asked for",
    lose_a_refund: "lost",
    change_a_refund: "changed",
    fail_a_refund: "changed",
    refund_what_nobody_asked_for: "not asked for",
    lose_a_posting: "lost",
    double_a_posting: "doubled",
    change_a_posting: "changed",
    post_what_nobody_asked_for: "not asked for",
    lose_a_hold: "lost",
    audit_fewer_orders: "not audited",
    audit_other_orders: "not audited",
}


@pytest.mark.parametrize("alter", ALTERATIONS)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), clients=st.integers(52, 90))
def test_whatever_is_altered_is_found(alter: Callable[[Run, random.Random], None], seed: int, clients: int) -> None:
    run = whole_run(seed, clients)
    alter(run, random.Random(seed))
    assert ALTERATIONS[alter] in {finding.kind for finding in run.findings()}


@settings(max_examples=20)
@given(st.integers(0, 1000), st.booleans())
def test_what_was_never_answered_may_be_there_or_not(seed: int, is_there: bool) -> None:
    run = whole_run(seed, 60)
    request = random.Random(seed).choice(run.of("order"))
    request.answers[:] = [Answer(1.0, None, error="no answer in time")]
    if not is_there:
        run.orders[:] = [order for order in run.orders if order.customer != request.subject]
        run.requests[:] = [
            each
            for each in run.requests
            if each.subject in {o.id for o in run.orders} or each.kind in ("order", "posting", "hold")
        ]
        run.audited = {order.id for order in run.orders}
    assert {finding.kind for finding in run.findings()} == {"never answered"}


def test_a_cancellation_that_came_after_the_server_was_bought_changes_nothing() -> None:
    run = whole_run(0, 1)
    order = replace(run.orders[0], status="COMPLETED", has_server=True)
    run.orders[:] = [order]
    run.requests.append(accepted(f"cancel {order.id}", "cancel", order.id, order.id, {}, 1))
    assert run.findings() == []


@pytest.mark.parametrize("kind", ["cancel", "deliver", "refund", "hold"])
def test_what_comes_too_late_may_be_refused(kind: RequestKind) -> None:
    run = whole_run(0, 60)
    run.requests.append(Request("late", kind, run.orders[0].id, {}, [Answer(1.0, 409, error="too late")]))
    assert run.findings() == []


def test_a_delivery_whose_answer_was_lost_may_be_done() -> None:
    """The second attempt finds it done, and is refused."""
    run = whole_run(0, 60)
    place = next(place for place, order in enumerate(run.orders) if order.status == "CONFIRMED")
    order = run.orders[place]
    run.orders[place] = replace(order, status="COMPLETED")
    answers = [Answer(1.0, None, error="no answer in time"), Answer(2.0, 409, error="it is COMPLETED")]
    run.requests.append(Request(f"deliver {order.id}", "deliver", order.id, {}, answers))
    assert run.findings() == []
