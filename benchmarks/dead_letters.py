"""How fast 100,000 dead letters are taken in, listed, searched and grouped.

    python -m benchmarks.dead_letters mongodb://127.0.0.1:27017/?replicaSet=rs0 [--letters 100000] [--keep]

Fills a database of its own, `benchmark_operations`, with letters of 200 causes (a few big, many small), as the ingest
records them, in batches of 50, unless it is full already; then asks what the pages ask, each question ten times.
Without --keep, the database is dropped at the end.
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

from operations.dead_letters import DeadLetterService, Filters
from operations.dead_letters.ingest import BATCH
from operations.dead_letters.records import LETTERS, LetterRecords
from shared.bus import Delivery
from shared.clock import to_rfc3339, utc_now
from shared.database import Document
from shared.topology import DEAD_LETTERS, INBOXES

TIMES = 10
CAUSES = 200
START = datetime(2026, 1, 1, tzinfo=UTC)


def deliveries(number: int) -> Iterator[Delivery]:
    """Dead letters as consumers publish them, the same in every run."""
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
    """Record the letters; returns how many a second."""
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
    """Median and worst of several times, after one that warms up."""
    await ask()
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        await ask()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken), max(taken)


async def measure(letters: DeadLetterService, number: int, console: Console) -> None:
    """Ask what the pages ask."""
    middle = None
    for _ in range(number // 1000):
        middle = (await letters.page(Filters(), limit=500, cursor=middle)).next_cursor or middle
    some = (await letters.page(Filters(), limit=1)).items[0]
    since = START + timedelta(seconds=number * 10)
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "list, first page of 50": lambda: letters.page(Filters()),
        "list, a page in the middle": lambda: letters.page(Filters(), cursor=middle),
        "list of a service": lambda: letters.page(Filters(service="payment")),
        "list of an error since a time": lambda: letters.page(Filters(error="KeyError", since=since)),
        "list of a message type": lambda: letters.page(Filters(type="stock.release")),
        "list of a group": lambda: letters.page(Filters(group=some["fingerprint"])),
        "list of an order": lambda: letters.page(Filters(order_id=some["orderId"])),
        "list of what was discarded (nothing)": lambda: letters.page(Filters(status=("discarded",))),
        "search of a word that all have": lambda: letters.page(Filters(text="handled")),
        "search of a rare word": lambda: letters.page(Filters(text=some["orderId"])),
        "search of a common and a rare word": lambda: letters.page(Filters(text=f"order {some['orderId']}")),
        "search of two that are common": lambda: letters.page(Filters(text="u17 handled")),
        "search of a beginning": lambda: letters.page(Filters(text=f"{some['orderId'][:6]}*")),
        "search of what is nowhere": lambda: letters.page(Filters(text="nowhere")),
        "groups, the 50 newest with their charts": lambda: letters.groups(),
        "one group with its chart": lambda: letters.group(some["fingerprint"]),
        "one letter": lambda: letters.letter(some["_id"]),
        "counts by status": lambda: letters.counts(),
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
        letters = DeadLetterService(database)
        if await database[LETTERS].estimated_document_count() != given.letters:
            await client.drop_database(database.name)
            await letters.prepare()
            console.print(f"recorded {await fill(LetterRecords(database), given.letters):,.0f} letters/s")
        size = await database.command("collStats", LETTERS)
        console.print(
            f"{size['storageSize'] / 2**20:.0f} MB of letters, {size['totalIndexSize'] / 2**20:.0f} MB of indexes"
        )
        await measure(letters, given.letters, console)
        if not given.keep:
            await client.drop_database(database.name)


if __name__ == "__main__":
    uvloop.run(main())
