"""The cost of contention: clients of the funds API on one account, on one account each, and on crossing transfers.

    python -m benchmarks.funds "mongodb://127.0.0.1:27017/?replicaSet=rs0" "amqp://guest:guest@127.0.0.1:5672/"
        [--clients 200] [--seconds 10] [--processes 2]

The benchmark starts its own payment processes, first one and then a second, with their own database, which it drops at
the end; the broker must have no other users. Each client posts as soon as its last request is answered: consumptions
from one retainer, consumptions from a retainer per client, or transfers, half of them from A to B and half from B to A.
The table shows granted requests per second, all other answers, the CPU time of the processes and of a mongod on this
machine per request, and, from the processes' `/metrics`, the share of operations that were retried and the median and
99th percentile of their duration, including waiting.
"""

import argparse
import asyncio
import itertools
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import orjson
import psutil
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from pymongo import AsyncMongoClient
from rich.console import Console
from rich.table import Table

from benchmarks.payments import cpu_seconds, mongod_at
from operations.load.connection import Connection, NoAnswerError, NotSentError
from shared.database import Document

PORT = 3930
PLENTY = 10**9
ANSWER_SECONDS = 60
DURATION = "transaction_duration_seconds"


@dataclass(frozen=True)
class Task:
    """The request that one client repeats."""

    path: str
    body: bytes


@dataclass
class Measured:
    """The processes' counts, summed over processes and operations."""

    attempts: float = 0
    transactions: float = 0
    buckets: Counter[float] | None = None
    """The number of transactions that took at most that many seconds."""

    def since(self, before: "Measured") -> "Measured":
        """Return the difference from an earlier measurement."""
        buckets = Counter(self.buckets)
        buckets.subtract(before.buckets or {})
        return Measured(self.attempts - before.attempts, self.transactions - before.transactions, buckets)

    def quantile(self, share: float) -> float:
        """Return a quantile of the durations in seconds, interpolated within a bucket as Prometheus does."""
        wanted, low, below = share * self.transactions, 0.0, 0.0
        for bound, count in sorted((self.buckets or {}).items()):
            if count >= wanted:
                return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return float("nan")


def environment(options: argparse.Namespace, prefix: str) -> Mapping[str, str]:
    """Return the environment of the payment processes."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")},
        "ORDERSAGA_MONGODB_URL": options.mongodb_url,
        "ORDERSAGA_AMQP_URL": options.amqp_url,
        "ORDERSAGA_TOPOLOGY": "declare",
        "ORDERSAGA_DATABASE_PREFIX": prefix,
        "ORDERSAGA_LOG_LEVEL": "ERROR",
        "ORDERSAGA_AUTH": "off",
    }


async def start(url: str, settings: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a payment process and wait until it is ready."""
    port = url.rpartition(":")[2]
    command = (sys.executable, "-m", "payment_service")
    process = await asyncio.create_subprocess_exec(*command, env={**settings, "ORDERSAGA_HTTP_PORT": port})
    async with httpx.AsyncClient() as client:
        while process.returncode is None:
            try:
                if (await client.get(f"{url}/readyz")).is_success:
                    return process
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
    raise SystemExit(f"a payment process ended with {process.returncode}")


async def read(urls: Sequence[str]) -> Measured:
    """Read the processes' counts so far."""
    found = Measured(buckets=Counter())
    async with httpx.AsyncClient() as client:
        for url in urls:
            text = (await client.get(f"{url}/metrics")).text
            for sample in (s for family in text_string_to_metric_families(text) for s in family.samples):
                if sample.name == "transaction_attempts_total":
                    found.attempts += sample.value
                elif sample.name == f"{DURATION}_count":
                    found.transactions += sample.value
                elif sample.name == f"{DURATION}_bucket" and found.buckets is not None:
                    found.buckets[float(sample.labels["le"])] += sample.value  # type: ignore[assignment]
    return found


async def create(url: str, path: str, kind: str, body: Document) -> str:
    """Create a resource and return its id."""
    async with httpx.AsyncClient() as client:
        answer = (await client.post(f"{url}{path}", json=body)).raise_for_status().json()
    created: str = answer[kind]["_id"]
    return created


async def consumptions(url: str, retainers: int, clients: int) -> list[Task]:
    """Create that many retainers, and a task for each client, spread over them."""
    body = {"clientId": "c1", "retainerType": "prepaid", "initialAmount": PLENTY}
    ids = [await create(url, "/api/retainers", "retainer", body) for _ in range(retainers)]
    paths = [f"/api/retainers/{ids[client % retainers]}/consume" for client in range(clients)]
    return [Task(path, orjson.dumps({"amount": 0.01})) for path in paths]


async def crossing(url: str, clients: int) -> list[Task]:
    """Create two bank accounts, and tasks that move money from A to B for half the clients, back for the others."""
    body = {"name": "A", "accountNumber": "1", "bankName": "First", "currency": "USD", "balance": PLENTY}
    a, b = [await create(url, "/api/bank-accounts", "account", body) for _ in range(2)]
    # In pairs, so that each of two processes gets both directions.
    ways = itertools.islice(itertools.cycle([(a, b), (a, b), (b, a), (b, a)]), clients)
    bodies = [{"fromAccountId": source, "toAccountId": target, "amount": 0.01} for source, target in ways]
    return [Task("/api/bank-transfers", orjson.dumps(transfer)) for transfer in bodies]


async def post(url: str, task: Task, until: float, answers: Counter[str]) -> None:
    """Act as one client until the given time."""
    connection = Connection(url, task.path)
    try:
        while time.perf_counter() < until:
            try:
                answers[str((await connection.post(task.body, ANSWER_SECONDS)).status)] += 1
            except (NoAnswerError, NotSentError) as error:
                answers[type(error).__name__] += 1
    finally:
        connection.close()


async def measure(
    urls: Sequence[str],
    used: Sequence[psutil.Process],
    mongod: psutil.Process | None,
    tasks: Sequence[Task],
    seconds: float,
) -> Sequence[str]:
    """Let all clients post for that many seconds and return a row of the table."""
    before, started = await read(urls), time.perf_counter()
    cpu = [sum(map(cpu_seconds, used)), cpu_seconds(mongod)]
    answers: Counter[str] = Counter()
    clients = zip(itertools.cycle(urls), tasks, strict=False)
    await asyncio.gather(*(post(url, task, started + seconds, answers) for url, task in clients))
    took, counted = time.perf_counter() - started, (await read(urls)).since(before)
    cpu = [sum(map(cpu_seconds, used)) - cpu[0], cpu_seconds(mongod) - cpu[1]]
    answered = answers.total()
    granted = answers.pop("200", 0) + answers.pop("201", 0)
    return (
        f"{granted / took:,.0f}",
        ", ".join(f"{count} of {answer}" for answer, count in answers.items()) or "none",
        *(f"{1000 * seconds / answered:.2f}" for seconds in cpu),
        f"{counted.attempts / counted.transactions - 1:.3f}",
        f"{1000 * counted.quantile(0.5):.0f}",
        f"{1000 * counted.quantile(0.99):.0f}",
    )


async def run(options: argparse.Namespace) -> None:
    """Measure all patterns with one process and with two, and print the table."""
    prefix = f"benchmark{secrets.token_hex(4)}"
    urls = [f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"]
    headings = ("granted/s", "others", "service CPU ms", "mongod CPU ms", "retries", "p50 ms", "p99 ms")
    table = Table("processes", f"{options.clients} clients on", *headings)
    mongod = mongod_at(options.mongodb_url)
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number, url in enumerate(urls[: options.processes], start=1):
            processes.append(await start(url, environment(options, prefix)))
            patterns = {
                "one account": await consumptions(url, 1, options.clients),
                f"{options.clients} accounts": await consumptions(url, options.clients, options.clients),
                "A→B and B→A": await crossing(url, options.clients),
            }
            for name, tasks in patterns.items():
                used = [psutil.Process(process.pid) for process in processes]
                table.add_row(str(number), name, *await measure(urls[:number], used, mongod, tasks, options.seconds))
    finally:
        for process in processes:
            process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))
        async with AsyncMongoClient[Document](options.mongodb_url) as client:
            await client.drop_database(f"{prefix}_payments")
    Console().print(table)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mongodb_url")
    parser.add_argument("amqp_url")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2), help="the most to measure with")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
