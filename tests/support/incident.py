"""An incident as the console's databases have it, with fixed times and ids.

Among good orders, one waits for stock since its message failed, and one failed as the provider had no server left.
Stock is held for an order that does not exist. Messages failed for three causes, and one was replayed in vain.
"""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from notification_service.schema import SCHEMA as NOTIFICATION_SCHEMA
from operations.actions import record_action
from operations.approvals.records import ApprovalRecords
from operations.audit.report import Report, Violation
from operations.audit.runs import SCHEDULE, AuditRuns
from operations.console import ConsoleDependencies
from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.incidents.incident import Incident as AnIncident
from operations.incidents.records import IncidentRecords
from operations.notifications.records import NotificationRecords
from operations.notifications.rules import WEBHOOK, Rule
from operations.order_actions.bulk import BY_CONSOLE, DONE, FAILED, BulkActions
from operations.samples.records import SampleRecords, SampleState
from operations.samples.sample import GOODS, SERVERS, Levels, Sample, bucket_of
from operations.saved_views.query import LISTS
from operations.saved_views.records import SavedViews
from operations.schema import SCHEMA
from operations.sign_in.person import Person
from shared import schema
from shared.access.permissions import Role
from shared.bus import Delivery
from shared.bus.failures import ERROR_TYPE, TRACEBACK
from shared.database import Database, Document
from shared.services import INVENTORY, NOTIFICATION, PAYMENT
from tests.support.consoles import Clock, a_letter, console_dependencies, record_letters
from tests.support.frozen import frozen
from tests.support.stand_in_services import PACKAGE, StandInServices, answers

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
OPERATOR, SECOND = (Person(name, name, frozenset({Role.OPERATOR})) for name in ("op-1", "op-2"))
NAMES = ("confirmed", "delivered", "declined", "stuck", "failed", "provisioning", "completed", "unknown")
ORDERS: Mapping[str, str] = {name: hashlib.sha256(name.encode()).hexdigest()[:32] for name in NAMES}
"""The ids of the orders, by what became of each; `unknown` is named only by other services."""

NO_STOCK_RECORD = """Traceback (most recent call last):
  File "inventory_service/handlers.py", line 61, in reserve_stock
    await reservations.reserve(batch)
  File "inventory_service/allocation.py", line 76, in best_case
    return self.free + self.returning + max(0, self.may_return - held)
TypeError: can only concatenate str (not "int") to str
"""


@dataclass(frozen=True)
class Incident:
    """A console over the incident, and the ids that the addresses of its pages need."""

    dependencies: ConsoleDependencies
    clock: Clock
    ids: Mapping[str, str]


@asynccontextmanager
async def recorded_incident(mongodb_url: str, amqp_url: str, prefix: str) -> AsyncIterator[Incident]:
    """Record the incident in databases with this prefix; its time stands still while the context is open."""
    clock = Clock()
    clock.now = NOW
    with frozen(clock):
        async with console_dependencies(mongodb_url, amqp_url, prefix, clock=clock) as wired:
            dependencies = replace(wired, services=StandInServices(answers(ORDERS)))
            await schema.prepare(dependencies.operations, SCHEMA)
            await schema.prepare(wired.client[NOTIFICATION.database_in(prefix)], NOTIFICATION_SCHEMA)
            await _keep_everything(dependencies.operations)
            await _orders(dependencies)
            letters = await _letters(dependencies, clock)
            requests = await _requests(dependencies, clock)
            run = await _what_happened(dependencies, clock)
            await _samples(dependencies)
            await SavedViews(dependencies.operations, clock).add(
                LISTS["/orders"], "Failed, to decide", "status=FAILED&open=1", OPERATOR.name
            )
            clock.now = NOW
            yield Incident(dependencies, clock, {**ORDERS, **letters, **requests, "run": run})


async def _keep_everything(database: Database) -> None:
    """Drop the indexes that delete by age: the incident is in the past, and the server knows what day it is."""
    for name in await database.list_collection_names():
        for index, about in (await database[name].index_information()).items():
            if "expireAfterSeconds" in about:
                await database[name].drop_index(index)


def _an_order(name: str, minutes: float, **fields: Any) -> Document:
    """An order that was placed that many minutes ago; its history is given as (seconds, event, status) each."""
    at = NOW - timedelta(minutes=minutes)
    steps = fields.pop("steps")
    history = [
        {"at": at + timedelta(seconds=after), "event": event, "status": status} for after, event, status in steps
    ]
    lamps = {"items": [{"productId": "lamp", "quantity": 2, "price": 4500}], "totalAmount": 9000, "currency": "USD"}
    known = {
        "_id": ORDERS.get(name) or hashlib.sha256(name.encode()).hexdigest()[:32],
        "userId": f"u-{1000 + int(minutes)}",
        "status": steps[-1][2],
        "stockStatus": "RESERVED",
        "paymentStatus": "PROCESSED",
        "fulfilment": "goods",
        "settled": True,
        "createdAt": at,
        "updatedAt": history[-1]["at"],
        "completedAt": history[-1]["at"],
        "deadline": at + timedelta(minutes=5),
        "payment": {"method": "card"},
        "delivery": {},
        "version": len(history),
        "history": history,
    }
    return lamps | known | fields


def _all_orders() -> list[Document]:
    created, paid = (0.0, "order.created", "PENDING"), (0.1, "payment.processed", "PENDING")
    done = (created, paid, (0.25, "stock.reserved", "CONFIRMED"))
    server: Document = {
        "fulfilment": "vps",
        "items": [{"productId": "server", "quantity": 1, "price": 1900}],
        "totalAmount": 1900,
    }
    requested = (*done[:2], (0.25, "stock.reserved", "PROVISIONING"))
    undone = (created, (0.1, "stock.reserved", "PENDING"), (0.2, "payment.failed", "CANCELLED"))
    declined = {"stockStatus": "RELEASED", "paymentStatus": "FAILED", "failureReason": "The card was declined"}
    return [
        *(_an_order(f"good {minutes}", minutes, steps=done) for minutes in (0.2, 0.4, 0.7, 14, 15, 16, 18, 20)),
        _an_order("confirmed", 45, steps=done),
        _an_order("delivered", 90, steps=(*done, (3600.0, "order.delivered", "COMPLETED")), stockStatus="SHIPPED"),
        _an_order("declined", 25, steps=(*undone, (0.3, "stock.released", "CANCELLED")), **declined),
        _an_order("stuck", 12, steps=(created, paid), settled=False, stockStatus="PENDING", completedAt=None)
        | {"deadline": NOW + timedelta(minutes=18), "resendAt": NOW + timedelta(seconds=20)},
        _an_order("failed", 10, steps=(*requested, (5.0, "provisioning.failed", "FAILED")), **server, settled=False)
        | {"failureReason": f"Package {PACKAGE}: no available IPs", "dueAt": NOW + timedelta(hours=23)},
        _an_order("provisioning", 2, steps=requested, **server, settled=False, completedAt=None),
        _an_order("completed", 30, steps=(*requested, (9.0, "provisioning.completed", "COMPLETED")), **server)
        | {"server": {"ip": "203.0.113.11"}, "provisioningStatus": "COMPLETED"},
    ]


async def _orders(dependencies: ConsoleDependencies) -> None:
    """Record the orders and what the participants know about them."""
    orders = _all_orders()
    await dependencies.orders.insert_many(orders)
    client, prefix = dependencies.client, dependencies.prefix
    inventory, payments = client[INVENTORY.database_in(prefix)], client[PAYMENT.database_in(prefix)]
    lamps = [{"productId": "lamp", "quantity": 2, "price": 4500}]
    known = [order for order in orders if order["stockStatus"] in ("RESERVED", "SHIPPED")]
    await inventory["reservations"].insert_many(
        [
            {
                "_id": order["_id"],
                "status": order["stockStatus"],
                "items": order["items"],
                "updatedAt": order["createdAt"],
            }
            for order in known
        ]
        + [{"_id": ORDERS["unknown"], "status": "RESERVED", "items": lamps, "updatedAt": NOW - timedelta(hours=1)}]
    )
    await payments["payments"].insert_many(
        [
            {
                "_id": order["_id"],
                "status": order["paymentStatus"],
                "amount": order["totalAmount"],
                "currency": "USD",
                "updatedAt": order["createdAt"] + timedelta(milliseconds=100),
                "transactionId": f"ch_{order['_id'][:8]}",
            }
            for order in orders
        ]
    )
    await dependencies.packages.insert_one(
        {"_id": "203.0.113", "name": PACKAGE, "ipv4": 0, "low": True, "checkedAt": NOW - timedelta(seconds=40)}
    )
    await dependencies.jobs.insert_many(_all_jobs())


def _a_job(name: str, minutes: float, state: str, step: str, **fields: Any) -> Document:
    """A job that was requested that many minutes ago; attempts are given as (seconds, step, outcome, detail)."""
    at = NOW - timedelta(minutes=minutes)
    attempts = [
        {"at": at + timedelta(seconds=after), "step": of, "outcome": outcome, "detail": detail}
        for after, of, outcome, detail in fields.pop("attempts")
    ]
    known = {"package": PACKAGE, "lockKey": "203.0.113", "run": 1, "attempts": attempts, "requestedAt": at}
    times = {"createdAt": at, "updatedAt": attempts[-1]["at"]}
    return {"_id": ORDERS[name], "state": state, "step": step} | known | times | fields


def _all_jobs() -> list[Document]:
    asked = {"asked": ["203.0.113.40"], "startedAt": NOW - timedelta(minutes=1), "answered": True}
    refused = "attempt 1 of 3: the provider answered 502"
    return [
        _a_job(
            "failed",
            10,
            "FAILED",
            "check",
            failureReason=f"Package {PACKAGE}: no available IPs",
            failureCode="package_unavailable",
            retryable=True,
            attempts=[(5, "check", "failed", f"Package {PACKAGE}: no available IPs")],
        ),
        _a_job(
            "provisioning",
            2,
            "WAITING",
            "buy",
            buys=1,
            dueAt=NOW + timedelta(seconds=90),
            purchase=asked | {"restUntil": NOW + timedelta(minutes=2)},
            attempts=[(59, "check", "ok", "3 free, asking for 203.0.113.40"), (61, "buy", "failed", refused)],
        ),
        _a_job(
            "completed",
            30,
            "COMPLETED",
            "status",
            buys=1,
            looks=1,
            ip="203.0.113.11",
            attempts=[
                (1, "check", "ok", "4 free, asking for 203.0.113.11"),
                (4, "buy", "ok", "bought 203.0.113.11"),
                (4, "verify", "ok", f"inside {PACKAGE}"),
                (9, "status", "ok", "the provider said how to get into it"),
            ],
        ),
    ]


async def _letters(dependencies: ConsoleDependencies, clock: Clock) -> dict[str, str]:
    """Record the dead letters, a note, a replay in vain and a discarded letter; return their ids by name."""
    letters = DeadLetterService(dependencies.operations)
    broken = 'can only concatenate str (not "int") to str'
    body = {"orderId": ORDERS["stuck"], "userId": "u-1012", "items": [{"productId": "lamp", "quantity": 2}]}
    await record_letters(
        dependencies,
        _as_in_service(a_letter(ORDERS["stuck"], broken, body=orjson.dumps(body), **_minutes(11, clock))),
        _as_in_service(a_letter(ORDERS["confirmed"], broken, **_minutes(31, clock))),
        a_letter(
            "none-1",
            "Order none-1 does not exist",
            queue="order.inbox",
            routing_key="stock.released",
            **_minutes(50, clock),
        ),
        a_letter("none-2", "not JSON", body=b"\x00\x01 not JSON", queue="payment.inbox", **_minutes(70, clock)),
        now=NOW - timedelta(minutes=10),
    )
    found = (await letters.page(Filters(order_id=ORDERS["stuck"]))).items[0]
    clock.now = NOW - timedelta(minutes=8)
    await letters.add_note(found["fingerprint"], "A script wrote text into the stock of lamp.", by=OPERATOR.name)
    replay = await letters.start_replay(
        Filters(order_id=ORDERS["confirmed"]), by=OPERATOR.name, why="the stock is a number again"
    )
    await _failed_again(dependencies, replay)
    clock.now = NOW - timedelta(minutes=5)
    discarded = (await letters.page(Filters(order_id="none-1"))).items[0]
    await letters.discard(Filters(order_id="none-1"), by=OPERATOR.name, why="no such order was placed")
    binary = (await letters.page(Filters(service="payment"))).items[0]
    return {
        "group": found["fingerprint"],
        "letter": found["_id"],
        "replay": replay,
        "discarded": discarded["_id"],
        "binary": binary["_id"],
    }


def _minutes(number: int, clock: Clock) -> dict[str, Any]:
    return {"ago": timedelta(minutes=number), "now": clock.now}


def _as_in_service(delivery: Delivery) -> Delivery:
    """Give a letter the error and the traceback of a service, in place of those of a test."""
    return replace(delivery, headers={**delivery.headers, TRACEBACK: NO_STOCK_RECORD, ERROR_TYPE: "TypeError"})


async def _failed_again(dependencies: ConsoleDependencies, replay: str) -> None:
    at = NOW - timedelta(minutes=7)
    over = {"$set": {"status": "done", "doneAt": at, "published": 1}}
    await dependencies.operations["replays"].update_one({"_id": replay}, over)
    entry = {"replay": replay, "outcome": "dead", "at": at, "outcomeAt": at, "messageId": "r1", "by": OPERATOR.name}
    await dependencies.operations["dead_letters"].update_one(
        {"orderId": ORDERS["confirmed"]}, {"$set": {"replays": [entry]}}
    )


async def _requests(dependencies: ConsoleDependencies, clock: Clock) -> dict[str, str]:
    """Record an act on several orders, requests for a second person, and what the operators did."""
    clock.now = NOW - timedelta(minutes=4)
    database, actions = dependencies.operations, BulkActions(dependencies.operations, clock)
    chosen = [order for order in _all_orders() if order["_id"] in (ORDERS["failed"], ORDERS["completed"])]
    bulk = await actions.start(
        chosen,
        person=OPERATOR,
        why="six servers are back",
        action="retry",
        selection={},
        rate=10,
        via=BY_CONSOLE,
        bulk_id="b0c1d2e3f4a59687",
    )
    for outcome, detail in ((DONE, "retried"), (FAILED, "An order that is COMPLETED cannot be retried")):
        if (item := await actions.claim(bulk["_id"])) is not None:
            await actions.record(item, outcome, detail)
    await actions.end_if_done(bulk["_id"])
    approvals = ApprovalRecords(database, clock)
    asked = {"action": "order.refund", "subject": ORDERS["failed"], "why": "the customer does not want to wait"}
    await approvals.ask(OPERATOR, **asked, parameters={})
    decided = await approvals.ask(
        SECOND, action="order.cancel", subject=ORDERS["stuck"], why="ordered twice", parameters={}
    )
    await approvals.decide(decided, OPERATOR, approve=False)
    await record_action(
        database,
        by=OPERATOR.label,
        why="the books after the replay",
        action="audit",
        subject="all",
        outcome="the books balance",
    )
    return {"bulk": bulk["_id"]}


async def _what_happened(dependencies: ConsoleDependencies, clock: Clock) -> str:
    """Record incidents, a rule with messages, and two audits; return the id of the one that found a violation."""
    database, incidents = dependencies.operations, IncidentRecords(dependencies.operations, clock=clock)
    happened = (
        (12, "dead-letters", "New cause of dead letters: TypeError in inventory", "inventory", "/dead-letters"),
        (9, "package-low", f"Package {PACKAGE} is low: 0 addresses are left", "provisioning", "/packages"),
        (6, "process-back", "The inventory service is back after 3 minutes", "inventory", None),
    )
    for minutes, kind, text, service, link in happened:
        at = clock.now = NOW - timedelta(minutes=minutes)
        await incidents.add([AnIncident(f"{kind}-1", at, kind, text, kind, service, link)])
    notifications = NotificationRecords(database, clock)
    rule = Rule("on-call", WEBHOOK, severities=("critical", "warning"))
    await notifications.add(rule)
    await notifications.open_test(rule)
    found = Violation(2, "reserved units", "product", "chair", "3 reserved", "2, which the orders hold")
    runs = AuditRuns(database, clock)
    for minutes, violations in ((60, []), (5, [found])):
        clock.now = NOW - timedelta(minutes=minutes)
        await runs.end(await runs.begin(SCHEDULE) or "", Report({"orders": 15}, violations), 0.5, 15)
    return str((await runs.last() or {})["_id"])


async def _samples(dependencies: ConsoleDependencies) -> None:
    """Record a sample of each minute of the last hour but five, in which the console did not run."""
    minutes = [minute for minute in range(60, 0, -1) if not 38 <= minute < 43]
    samples = [_sample(minute) for minute in minutes]
    await SampleRecords(dependencies.operations).move_on(
        None, SampleState(NOW, [], [sample.as_document() for sample in samples])
    )


def _sample(minute: int) -> Sample:
    """The sample of a minute so long ago: orders waited from half an hour to a quarter of an hour ago."""
    is_slow = 15 <= minute < 30
    accepted = 40 + (minute * 7) % 13
    slow = {bucket_of(20.0 * (30 - minute)): 3} if is_slow else {}
    return Sample(
        at=NOW - timedelta(minutes=minute),
        accepted=accepted,
        settled=accepted // 3 if is_slow else accepted + (35 if 12 <= minute < 15 else 0),
        cancelled=minute % 4 if is_slow else 0,
        failed=1 if minute in (10, 27) else 0,
        latency={
            GOODS: {bucket_of(0.2 + minute % 5 / 50): accepted, bucket_of(0.9): 2, **slow},
            SERVERS: {bucket_of(9.0 + minute % 3): 1} if minute % 10 == 0 else {},
        },
        levels=Levels(
            max(0, min(3, 5 - minute // 12)), "inventory.inbox", 60.0 * max(0, 30 - minute) if is_slow else 0.0
        ),
    )
