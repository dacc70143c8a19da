"""The time of the console's pages with 100,000 dead letters in 150 groups and 1,000,000 orders.

    python -m benchmarks.console_pages mongodb://127.0.0.1:27017/?replicaSet=rs0 [--orders 1000000] [--letters 100000]
        [--keep]

Fills the databases `benchmark_pages_*` with orders, of which one in fifty is not settled, and with letters about some
of them, as the ingest records them, unless they are full already. Then opens each page as a browser would, without
network, and again a few times. No service runs, so every page also shows the banner of what is away, with the orders
that wait for it. Without --keep, the databases are dropped at the end.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import uvloop
from pymongo import AsyncMongoClient
from rich.console import Console
from rich.table import Table

from inventory_service.schema import SCHEMA as INVENTORY_SCHEMA
from notification_service.schema import SCHEMA as NOTIFICATION_SCHEMA
from operations.console import ConsoleDependencies
from operations.console.figures import STATUSES
from operations.dead_letters.filters import Filters
from operations.dead_letters.ingest import BATCH
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.schema import LETTERS
from operations.dead_letters.service import DeadLetterService
from operations.impact.impact import Impact
from operations.impact.reading import ImpactReader
from operations.samples.counting import count_orders, open_before
from operations.samples.records import SampleRecords, SampleState
from operations.samples.sample import GOODS, MINUTE, Sample, Window, whole_minute
from operations.schema import SCHEMA as OPERATIONS_SCHEMA
from order_service.participants import PARTICIPANTS, PENDING
from order_service.schema import SCHEMA as ORDER_SCHEMA
from payment_service.schema import SCHEMA as PAYMENT_SCHEMA
from provisioning_service.schema import SCHEMA as PROVISIONING_SCHEMA
from shared import schema
from shared.bus import Delivery
from shared.clock import to_rfc3339, utc_now
from shared.database import Document
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING
from shared.topology import DEAD_LETTERS, INBOXES
from tests.support.consoles import console_dependencies, pages_of

PREFIX = "benchmark_pages"
TIMES = 5
GROUPS = 150
CUSTOMERS = 50_000
UNSETTLED_OF = 50
"""One order in so many is not settled."""
AT_ONCE = 5_000
NOWHERE = "amqp://guest:guest@127.0.0.1:9/"
START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMAS = {
    ORDER: ORDER_SCHEMA,
    INVENTORY: INVENTORY_SCHEMA,
    PAYMENT: PAYMENT_SCHEMA,
    PROVISIONING: PROVISIONING_SCHEMA,
    NOTIFICATION: NOTIFICATION_SCHEMA,
    CONSOLE: OPERATIONS_SCHEMA,
}


def order_id(number: int) -> str:
    """Return the id of an order; ids are random in the way of real ones, and the same in every run."""
    return f"{random.Random(number).getrandbits(128):032x}"


def an_order(number: int) -> Document:
    """Return an order as the order service stores it."""
    at = START + timedelta(seconds=number * 5)
    unsettled = number % UNSETTLED_OF == 0
    return {
        "_id": order_id(number),
        "userId": f"u{number % CUSTOMERS}",
        "ownerId": f"shop-{number % 20}",
        "items": [{"productId": f"p{number % 500}", "quantity": 1, "price": 1000 + number % 977}],
        "totalAmount": 1000 + number % 977,
        "currency": ("EUR", "USD")[number % 3 == 0],
        "payment": {"method": "card", "token": "tok_ok"},
        "delivery": {},
        "status": "PENDING" if unsettled else ("COMPLETED", "CANCELLED", "CONFIRMED")[number % 3],
        **{row.stored_field: PENDING if unsettled else row.succeeded for row in PARTICIPANTS},
        "settled": not unsettled,
        "createdAt": at,
        "updatedAt": at,
        "enteredAt": at,
        "deadline": at + timedelta(minutes=5),
        "version": 3,
        "sagaVersion": 1,
        "history": [{"at": at, "event": "order.created", "status": "PENDING"}],
    }


def deliveries(number: int, orders: int) -> Iterator[Delivery]:
    """Yield dead letters of GROUPS causes as consumers publish them, a few big causes and many small ones."""
    chance = random.Random(7)
    places = [(queue, message.routing_key) for queue, messages in INBOXES.items() for message in messages]
    words = [f"cause{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(GROUPS)]
    for index in range(number):
        cause = index if index < GROUPS else min(int(chance.expovariate(0.05)), GROUPS - 1)
        queue, routing_key = places[cause % len(places)]
        about = order_id(chance.randrange(orders))
        yield Delivery(
            body=orjson.dumps({"orderId": about, "userId": f"u{index % CUSTOMERS}", "totalAmount": 30}),
            queue=DEAD_LETTERS,
            exchange=DEAD_LETTERS,
            routing_key=routing_key,
            type=routing_key,
            correlation_id=about,
            message_id=f"{index:032x}",
            redelivered=False,
            headers={
                "x-queue": queue,
                "x-error-type": "PoisonError",
                "x-error-message": f"{words[cause]} of order {about} cannot be handled",
                "x-traceback": "Traceback (most recent call last):\n" + '  File "a.py", line 1, in f\n' * 20,
                "x-attempts": 5,
                "x-failed-at": to_rfc3339(START + timedelta(seconds=index * 20)),
            },
            receipt=None,
        )


async def fill(dependencies: ConsoleDependencies, orders: int, letters: int, console: Console) -> None:
    """Store the orders and letters that are missing."""
    for service, collections in SCHEMAS.items():
        await schema.prepare(dependencies.client[service.database_in(PREFIX)], collections)
    stored = await dependencies.orders.estimated_document_count()
    for start in range(stored, orders, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, orders))
        await dependencies.orders.insert_many([an_order(number) for number in numbers], ordered=False)
    if await dependencies.operations[LETTERS].estimated_document_count() < letters:
        records, batch = LetterRecords(dependencies.operations), list[Delivery]()
        for delivery in deliveries(letters, orders):
            batch.append(delivery)
            if len(batch) == BATCH:
                await records.record(batch, utc_now())
                batch = []
        await records.record(batch, utc_now())
    console.print(f"{orders:,} orders and {letters:,} letters are stored")


async def fill_samples(dependencies: ConsoleDependencies) -> None:
    """Store a sample of each minute of the last week."""
    records, now = SampleRecords(dependencies.operations), whole_minute(utc_now())
    latency = {GOODS: dict.fromkeys(range(-25, 5), 9)}
    samples = [Sample(now - n * MINUTE, accepted=90, settled=90, latency=latency) for n in range(1, 7 * 24 * 60)]
    await records.copy(SampleState(now, [], [sample.as_document() for sample in samples]))


async def measure_sample(dependencies: ConsoleDependencies, console: Console) -> None:
    """Count the orders of one minute, as a sample of it does."""
    newest = await dependencies.orders.find_one({"status": {"$in": list(STATUSES)}}, sort=[("createdAt", -1)])
    until = whole_minute(newest["createdAt"]) if newest else utc_now()
    followed = await open_before(dependencies.orders, until - MINUTE)
    started = time.perf_counter()
    found = await count_orders(dependencies.orders, Window(until - MINUTE, until), followed)
    took = (time.perf_counter() - started) * 1000
    console.print(f"sample of a minute with {len(followed):,} orders open before: {took:.0f} ms, {found.accepted}")


async def addresses(dependencies: ConsoleDependencies) -> dict[str, str]:
    """Return the pages to open, by what they are."""
    service = DeadLetterService(dependencies.operations)
    biggest, *_, smallest = sorted(await service.groups(limit=1000), key=lambda group: -group.open)
    (letter,) = (await service.page(Filters(), limit=1)).items
    return {
        "overview": "/",
        "overview, its live part": "/overview",
        "charts of an hour": "/overview/charts?range=1h",
        "charts of 7 days": "/overview/charts?range=7d",
        "groups by harm": "/dead-letters",
        "groups by harm, the last page": "/dead-letters?page=3",
        "groups by newest failure": "/dead-letters?sort=newest",
        "groups with a cause": "/dead-letters?cause=causeaa",
        "groups with a product": "/dead-letters?product=u17",
        f"a group of {biggest.open:,} letters": f"/dead-letters/groups/{biggest.fingerprint}",
        f"a group of {smallest.open:,} letters": f"/dead-letters/groups/{smallest.fingerprint}",
        "letters": "/dead-letters/list",
        "letters, oldest first": "/dead-letters/list?sort=oldest",
        "letters with a word that all have": "/dead-letters/list?text=handled",
        "a letter": f"/dead-letters/letters/{letter['_id']}",
        "orders": "/orders",
        "orders, oldest first": "/orders?sort=oldest",
        "orders of a user": "/orders?user=u17",
        "orders of a shop": "/orders?owner=shop-3",
        "orders of a product, everywhere": "/orders?product=p17",
        "orders of a product that none has": "/orders?product=nothing",
        "search: an order's id": f"/search?q={order_id(17)}",
        "search: the beginning of an id": f"/search?q={order_id(17)[:8]}",
        "search: a user": "/search?q=u17",
        "search: nothing": "/search?q=nothing-has-this-id",
        "actions on many orders": "/bulk-actions",
        "banner of what is away": "/outages",
    }


async def measure(pages: httpx.AsyncClient, paths: dict[str, str], console: Console) -> None:
    """Open every page once, and then some times more."""
    table = Table("page", "first, ms", "then, median ms", "worst ms", "remarks")
    for name, path in paths.items():
        taken, text = list[float](), ""
        for _ in range(TIMES + 1):
            started = time.perf_counter()
            answer = await pages.get(path)
            taken.append((time.perf_counter() - started) * 1000)
            text = answer.text
            if answer.status_code not in (200, 303):
                raise RuntimeError(f"{path} answered {answer.status_code}: {text[:300]}")
        first, *others = taken
        remarks = "not in time" if "did not answer in time" in text or "timed out" in text else ""
        table.add_row(name, f"{first:.0f}", f"{statistics.median(others):.0f}", f"{max(others):.0f}", remarks)
    console.print(table)


async def measure_impact(dependencies: ConsoleDependencies, console: Console) -> None:
    """Read the impact of all groups, as a list does that has nothing kept, of the biggest one, and of an outage."""
    service, reader = DeadLetterService(dependencies.operations), ImpactReader(dependencies.client, PREFIX)
    groups = {group.fingerprint: group.open for group in await service.groups(limit=1000)}
    biggest = max(groups, key=lambda name: groups[name])
    readings: dict[str, Any] = {
        f"{len(groups)} groups": lambda: reader.of_groups(groups),
        f"one group of {groups[biggest]:,} letters": lambda: reader.of_group(biggest, groups[biggest]),
        "an outage": lambda: reader.of_outages(["inventory", "payment"], utc_now()),
    }
    for name, read in readings.items():
        started = time.perf_counter()
        found = await read()
        took = (time.perf_counter() - started) * 1000
        impacts: list[Impact] = list(found.values()) if isinstance(found, dict) else [found]
        orders = sum(impact.total.orders for impact in impacts)
        cut = sum(not impact.complete for impact in impacts)
        console.print(f"impact of {name}: {took:.0f} ms, {orders:,} orders, {cut} of {len(impacts)} not complete")


async def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mongodb_url")
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    console = Console(width=120)
    async with console_dependencies(given.mongodb_url, NOWHERE, PREFIX) as dependencies:
        try:
            await fill(dependencies, given.orders, given.letters, console)
            await fill_samples(dependencies)
            await measure_sample(dependencies, console)
            await measure_impact(dependencies, console)
            async with pages_of(dependencies) as pages:
                await measure(pages, await addresses(dependencies), console)
        finally:
            if not given.keep:
                for service in SCHEMAS:
                    client: AsyncMongoClient[Document] = dependencies.client
                    await client.drop_database(service.database_in(PREFIX))


if __name__ == "__main__":
    uvloop.run(main())
