"""The speed of recording, listing, searching and grouping 100,000 dead letters.

    python -m benchmarks.dead_letters mongodb://127.0.0.1:27017/?replicaSet=rs0 [--letters 100000] [--keep]

Fills the database `benchmark_operations` with letters of 200 causes (a few big, many small), as the ingest records
them, in batches of 50, unless it is full already. Then runs the queries of the pages, ten times each. Without --keep,
the database is dropped at the end.
"""

import argparse
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import uvloop
from pymongo import AsyncMongoClient
from rich.console import Console
from rich.table import Table

from operations.dead_letters.filters import Filters
from operations.dead_letters.ingest import BATCH
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.schema import LETTERS
from operations.dead_letters.service import DeadLetterService
from shared.bus import Delivery
from shared.clock import to_rfc3339, utc_now
from shared.database import Document
from shared.topology import DEAD_LETTERS, INBOXES

TIMES = 10
CAUSES = 200
START = datetime(2026, 1, 1, tzinfo=UTC)


def deliveries(number: int) -> Iterator[Delivery]:
    """Yield dead letters as consumers publish them, the same in every run."""
    chance = random.Random(7)
    places = [(queue, message.routing_key) for queue, messages in INBOXES.items() for message in messages]
    words = [f"cause{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(CAUSES)]
    for index in range(number):
        cause = min(int(chance.expovariate(0.05)), CAUSES - 1)
        queue, routing_key = places[cause % len(places)]
        order_id = f"{chance.getrandbits(64):016x}"
        failed_at = START + timedelta(seconds=index * 20 + chance.random())
        items = [{"productId": f"p{chance.randrange(500)}", "quantity": 1, "price": 10} for _ in range(3)]
        yield Delivery(
            body=orjson.dumps({"orderId": order_id, "userId": f"u{index % 5000}", "items": items, "totalAmount": 30}),
            queue=DEAD_LETTERS,
            exchange=DEAD_LETTERS,
            routing_key=routing_key,
            type=routing_key,
            correlation_id=order_id,
            message_id=f"{index:032x}",
            redelivered=False,
            headers={
                "x-queue": queue,
                "x-error-type": ("PoisonError", "KeyError", "ValueError")[cause % 3],
                "x-error-message": f"{words[cause]}: order {order_id} cannot be handled",
                "x-traceback": "Traceback (most recent call last):\n" + "  File …\n" * 20,
                "x-attempts": 5,
                "x-failed-at": to_rfc3339(failed_at),
            },
            receipt=None,
        )


async def fill(records: LetterRecords, number: int) -> float:
    """Record the letters; return how many per second."""
    started = time.perf_counter()
    batch: list[Delivery] = []
    for delivery in deliveries(number):
        batch.append(delivery)
        if len(batch) == BATCH:
            await records.record(batch, utc_now())
            batch = []
    if batch:
        await records.record(batch, utc_now())
    return number / (time.perf_counter() - started)


async def milliseconds(ask: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Return the median and the worst of several runs, after one to warm up."""
    await ask()
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        await ask()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken), max(taken)


async def measure(service: DeadLetterService, number: int, console: Console) -> None:
    """Run the queries of the pages."""
    middle = None
    for _ in range(number // 1000):
        middle = (await service.page(Filters(), limit=500, cursor=middle)).next_cursor or middle
    some = (await service.page(Filters(), limit=1)).items[0]
    since = START + timedelta(seconds=number * 10)
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "list, first page of 50": lambda: service.page(Filters()),
        "list, a page in the middle": lambda: service.page(Filters(), cursor=middle),
        "list of a service": lambda: service.page(Filters(service="payment")),
        "list of an error since a time": lambda: service.page(Filters(error="KeyError", since=since)),
        "list of a message type": lambda: service.page(Filters(type="stock.release")),
        "list of a group": lambda: service.page(Filters(group=some["fingerprint"])),
        "list of an order": lambda: service.page(Filters(order_id=some["orderId"])),
        "list of discarded letters (none)": lambda: service.page(Filters(status=("discarded",))),
        "search for a word that all have": lambda: service.page(Filters(text="handled")),
        "search for a rare word": lambda: service.page(Filters(text=some["orderId"])),
        "search for a common and a rare word": lambda: service.page(Filters(text=f"order {some['orderId']}")),
        "search for two common words": lambda: service.page(Filters(text="u17 handled")),
        "search for a prefix": lambda: service.page(Filters(text=f"{some['orderId'][:6]}*")),
        "search for a word that none has": lambda: service.page(Filters(text="nowhere")),
        "groups, the 50 newest with their charts": lambda: service.groups(),
        "one group with its chart": lambda: service.group(some["fingerprint"]),
        "one letter": lambda: service.letter(some["_id"]),
        "counts by status": lambda: service.counts(),
    }
    table = Table("question", "median ms", "worst ms", title=f"{number:,} dead letters")
    for question, ask in questions.items():
        median, worst = await milliseconds(ask)
        table.add_row(question, f"{median:.1f}", f"{worst:.1f}")
    console.print(table)


async def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mongodb_url")
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    console = Console()
    async with AsyncMongoClient[Document](given.mongodb_url, tz_aware=True, w="majority") as client:
        database = client["benchmark_operations"]
        service = DeadLetterService(database)
        if await database[LETTERS].estimated_document_count() != given.letters:
            await client.drop_database(database.name)
            await service.prepare()
            console.print(f"recorded {await fill(LetterRecords(database), given.letters):,.0f} letters/s")
        size = await database.command("collStats", LETTERS)
        console.print(
            f"{size['storageSize'] / 2**20:.0f} MB of letters, {size['totalIndexSize'] / 2**20:.0f} MB of indexes"
        )
        await measure(service, given.letters, console)
        if not given.keep:
            await client.drop_database(database.name)


if __name__ == "__main__":
    uvloop.run(main())
