"""Kills servers and services of a cluster hundreds of times under load, and checks that no order is lost or doubled.

    .venv/bin/python -m benchmarks.kills --kills 500 --seed 1
    .venv/bin/python -m benchmarks.kills --kills 50 --rate 30 --json

Starts a stack of its own with `ordersaga up --cluster` in a temporary directory, and one more process of each service;
clients know both of the order service. Orders of all kinds are placed at a steady rate; a client repeats an order,
under the same idempotency key, until it is accepted. Meanwhile processes die by `kill -9`, or stop for some seconds
(SIGSTOP): the node that leads a random inbox, the primary, any node or member, any service. A node or member dies only
while all three run, and nodes only while they see each other; a process dies only while the other one runs. They are
started again. The next one dies as soon as all orders until then are settled. Every kind of victim comes in each round
of 18 hits. The table, in Markdown, shows for each kind

    recovery     from the kill until an order that is placed right after it is accepted and settled (for a server if the
                 provisioning service was killed)
    all settled  from the kill until every order that was placed before that is settled, too

Leases and pauses of provisioning are short, so that an order for a server does not wait for minutes after a kill.

Exit status 1 if an accepted order is lost, doubled or not settled, a client gives an order up, clients see a kill for
ever, a message is a dead letter, the books do not balance, a process does not come back, or the run ends before its
kills and minutes do.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pymongo.errors
import uvloop
from rich.console import Console

from benchmarks.failover import SETTLED_WITHIN, Clients, Orders, Placed, own_stack, percentiles
from benchmarks.failover_faults import BROKER_NODES, Cluster
from benchmarks.further_processes import further_processes
from benchmarks.kills_orders import CUSTOMER, MOST_SERVERS, body_of_goods, body_of_server, open_shop
from benchmarks.kills_victims import KILLED_SERVICES, PAUSED, Kind, Victim, Victims, kinds
from operations.audit import audit
from operations.reading.connection import open_mongodb
from operations.settings import Stack, locate_stack
from operations.stack.layout import Layout, numbered
from operations.stack.rabbitmq_cluster import NET_TICK_SECONDS
from shared.database import Document
from shared.services import ORDER, PROVISIONING

OFFSET = 8000
"""Added to all ports, so that the stack runs beside others."""
SETTINGS = {
    "ORDERSAGA_BUY_RETRY_DELAYS": "0.5,1",
    "ORDERSAGA_STATUS_RETRY_DELAYS": "0.5,1",
    "ORDERSAGA_LOCK_LEASE_SECONDS": "5",
    "ORDERSAGA_BUY_TIMEOUT_SECONDS": "10",
}
ANSWER_WITHIN = 5.0
"""More than an election. Then the order is repeated, at another process."""
BACK_WITHIN = 180.0
POLL_SECONDS = 0.1
PARTED_AFTER = NET_TICK_SECONDS * 3 / 4
"""The shortest pause in seconds after which the other nodes may have given up a node of the broker."""
GOAL = "Goal: recovery p50 3 s, p99 10 s."
FEWEST_FOR_P99 = 100

DONE, TIME_OVER = "all were hit", "the minutes were over"
"""How a run ends that went well."""
WRONG = ("lost", "doubled", "givenUp", "unsettled", "deadLetters", "violations", "never")
"""The counts that are 0 if all is well."""

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Hit:
    """A kill or a pause, and the seconds until clients saw nothing of it any more; None if that never came."""

    victim: Victim
    at: float
    recovery: float | None
    all_settled: float | None
    last: str

    @property
    def is_seen_for_ever(self) -> bool:
        """Whether the orders around it were not accepted and settled in time."""
        return self.recovery is None or self.all_settled is None

    def as_json(self) -> Document:
        """Return the hit as a JSON object."""
        return {
            "kind": self.victim.kind,
            "process": self.victim.process,
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "pauseSeconds": self.victim.pause and round(self.victim.pause, 1),
            "recoverySeconds": self.recovery and round(self.recovery, 3),
            "allSettledSeconds": self.all_settled and round(self.all_settled, 3),
            "lastSettled": self.last,
        }


class Records:
    """The orders in the database, which is away itself now and then."""

    def __init__(self, client: "pymongo.AsyncMongoClient[Document]", stack: Stack) -> None:
        self._orders = client[ORDER.database_in(stack.database_prefix)].orders

    async def settled_at(self, order_id: str) -> float | None:
        """Wait until an order is settled; return when it was, in Unix seconds, or None if that takes too long."""
        deadline = time.monotonic() + SETTLED_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(pymongo.errors.PyMongoError):
                if found := await self._orders.find_one({"_id": order_id, "settled": True}, {"updatedAt": 1}):
                    return float(found["updatedAt"].timestamp())
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def wait_until_settled(self, before: float) -> bool:
        """Wait until no order from before this time is unsettled; return False if that takes too long."""
        wanted = {"settled": False, "createdAt": {"$lt": datetime.fromtimestamp(before, UTC)}}
        deadline = time.monotonic() + SETTLED_WITHIN
        while time.monotonic() < deadline:
            with contextlib.suppress(pymongo.errors.PyMongoError):
                if not await self._orders.count_documents(wanted, limit=1):
                    return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def last_settled(self, since: float, before: float) -> str:
        """Describe the order that was settled last of those from between these times."""
        times = {"$gte": datetime.fromtimestamp(since, UTC), "$lt": datetime.fromtimestamp(before, UTC)}
        wanted = {"userId": CUSTOMER, "createdAt": times}
        with contextlib.suppress(pymongo.errors.PyMongoError):
            if last := await self._orders.find_one(wanted, sort=[("updatedAt", -1)]):
                return f"{last['_id']}: {last['status']}, {last['items'][0]['productId']}, {last['payment']}"
        return ""

    async def settled_by_id(self) -> dict[str, bool]:
        """Return whether each order is settled."""
        return {order["_id"]: order["settled"] async for order in self._orders.find({}, {"settled": 1})}


class Soak:
    """Hits one victim after the other, and waits each time until clients see nothing of it any more."""

    def __init__(self, cluster: Cluster, clients: Clients, records: Records, victims: Victims) -> None:
        self._cluster = cluster
        self._clients = clients
        self._records = records
        self._victims = victims
        self.placed = Orders()
        self.hits: list[Hit] = []

    async def run(self, kills: int, seconds: float) -> str:
        """Hit that many victims, or as many as the time allows; return what ended it."""
        end = time.monotonic() + seconds
        try:
            while len(self.hits) < kills:
                if time.monotonic() > end:
                    return TIME_OVER
                victim, at = await self._strike()
                self.hits.append(hit := await self._recovery(victim, at))
                _console.print(f"{len(self.hits)}/{kills} {in_words(hit)}", highlight=False, soft_wrap=True)
                await self._mend(victim)
        except TimeoutError as error:
            return str(error)
        return DONE

    async def _strike(self) -> tuple[Victim, float]:
        while True:
            victim = await self._victims.next(BACK_WITHIN)
            at = time.time()
            with contextlib.suppress(LookupError):  # it has just ended by itself
                self._cluster.send(victim.process, signal.SIGKILL if victim.pause is None else signal.SIGSTOP)
                return victim, at

    async def _recovery(self, victim: Victim, at: float) -> Hit:
        continuing = asyncio.create_task(self._continue(victim))
        more = body_of_goods()
        if victim.kind == PROVISIONING.name:
            more = body_of_server(MOST_SERVERS - len(self.hits))
        order = await self._clients.place(more, self.placed)
        settled_at = await self._records.settled_at(order.order_id) if order.order_id else None
        before = order.accepted_at or time.time()
        all_settled = await self._records.wait_until_settled(before)
        until = time.time() - at if all_settled else None
        last = await self._records.last_settled(at - 60, before)
        await continuing
        return Hit(victim, at, settled_at and settled_at - at, until, last)

    async def _continue(self, victim: Victim) -> None:
        if victim.pause is not None:
            await asyncio.sleep(victim.pause)
            with contextlib.suppress(LookupError):  # it has ended, and is started again
                self._cluster.send(victim.process, signal.SIGCONT)

    async def _mend(self, victim: Victim) -> None:
        # RabbitMQ 3.10 leaves such a node parted from the nodes that had given it up (docs/clusters.md).
        if victim.process in BROKER_NODES and (victim.pause or 0) > PARTED_AFTER:
            with contextlib.suppress(LookupError):
                await self._cluster.restart(victim.process)

    async def finish(self) -> list[str]:
        """Wait until all orders are settled and all processes are back; return the processes that are not."""
        await self._records.wait_until_settled(time.time())
        deadline = time.monotonic() + BACK_WITHIN
        while missing := [name for name in self._victims.processes if not self._cluster.runs(name)]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return sorted(missing)


def in_words(hit: Hit) -> str:
    """Return a line about a hit."""
    times = [f"{seconds:.1f} s" if seconds is not None else "never" for seconds in (hit.recovery, hit.all_settled)]
    clock = datetime.fromtimestamp(hit.at, UTC)
    how = "killed" if hit.victim.pause is None else f"paused for {hit.victim.pause:.1f} s"
    victim = f"{hit.victim.kind} ({hit.victim.process}) {how}"
    return f"{clock:%H:%M:%S} {victim}: recovery {times[0]}, all {times[1]} ({hit.last})"


async def run(stack: Stack, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the soak on a stack; return the report."""
    cluster = Cluster(directory)
    began = time.monotonic()
    async with (
        aiohttp.ClientSession(headers=stack.headers, connector=aiohttp.TCPConnector(limit=0)) as session,
        open_mongodb(stack.mongodb_url, purpose="the benchmark", name="kills") as client,
        further_processes(directory, options.processes, KILLED_SERVICES) as further,
    ):
        cluster.add(further)
        mixture = await open_shop(session, stack)
        urls = [str(cluster.process(numbered(ORDER.name, number)).url) for number in range(1, options.processes + 1)]
        clients = Clients(session, urls, options.rate, ANSWER_WITHIN, mixture.body)
        records = Records(client, stack)
        wanted = kinds(options.processes, options.victims)
        soak = Soak(cluster, clients, records, Victims(cluster, wanted, options.seed))
        async with clients.placing(soak.placed):
            end = await soak.run(options.kills, 60 * options.minutes)
        missing = await soak.finish()
        settled = await records.settled_by_id()
    books = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix)
    report = {
        "seed": options.seed,
        "rate": options.rate,
        "processesPerService": options.processes,
        "seconds": round(time.monotonic() - began),
        "load": {"average": round(os.getloadavg()[1], 1), "cores": os.cpu_count()},
        "asked": options.kills,
        "done": len(soak.hits),
        "end": end,
        "kinds": rows(soak.hits, wanted),
        "never": sum(each.is_seen_for_ever for each in soak.hits),
        **correctness(soak.placed.orders, settled, books.as_json()),
        "notBack": missing,
        "repeatedByClients": dict(soak.placed.refusals.most_common()),
        "hits": [hit.as_json() for hit in soak.hits],
        "audit": books.as_json(),
    }
    return {"ok": is_ok(report), **report}


def rows(hits: Sequence[Hit], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """Return a line of the report for each kind of victim, for those paused, and for all; times are in seconds."""
    titled = {
        title: [hit for hit in hits if hit.victim.title == title] for title in (*(kind.title for kind in kinds), PAUSED)
    }
    return [
        {
            "kind": kind,
            "hits": len(found),
            "recovery": percentiles([hit.recovery for hit in found if hit.recovery is not None]),
            "allSettled": percentiles([hit.all_settled for hit in found if hit.all_settled is not None]),
            "never": sum(hit.is_seen_for_ever for hit in found),
        }
        for kind, found in [*titled.items(), ("all", list(hits))]
    ]


def correctness(placed: Sequence[Placed], settled: dict[str, bool], books: dict[str, Any]) -> dict[str, int]:
    """Count the orders that were accepted, and what must not be: all counts but the first two are 0 if all is well."""
    accepted = Counter(order.order_id for order in placed if order.order_id is not None)
    given_up = len(placed) - accepted.total()
    known = books["information"]
    return {
        "placed": len(placed),
        "accepted": len(accepted),
        "lost": sum(order_id not in settled for order_id in accepted),
        # Each order has a key of its own, so two orders under one id, or more orders than keys, are wrong. What a
        # client has given up may be stored once.
        "doubled": accepted.total() - len(accepted) + max(0, len(settled.keys() - accepted.keys()) - given_up),
        "givenUp": given_up,
        "unsettled": sum(not is_settled for is_settled in settled.values()),
        "deadLetters": known["deadLetters"] + sum(known["deadLettersRecorded"].values()),
        "violations": len(books["violations"]) + books["unlisted"],
    }


def is_ok(report: dict[str, Any]) -> bool:
    """Return whether nothing went wrong."""
    is_whole = report["end"] in (DONE, TIME_OVER) and report["done"] > 0
    return is_whole and report["audit"]["ok"] and not any(report[name] for name in WRONG) and not report["notBack"]


def show(report: dict[str, Any]) -> None:
    """Print the report for docs/performance.md."""
    load = report["load"]
    print("| killed | times | recovery p50 / p99 / max | all settled p50 / p99 / max |\n|---|---|---|---|")
    for line in report["kinds"]:
        print(f"| {line['kind']} | {line['hits']} | {_in_cell(line, 'recovery')} | {_in_cell(line, 'allSettled')} |")
    print(f"\nSeconds; p99 from {FEWEST_FOR_P99} times on. {GOAL}")
    print(f"{report['done']} of {report['asked']} kills and pauses: {report['end']}. {report['rate']:g} orders/s for")
    print(f"{report['seconds']} s, at a load average of {load['average']} on {load['cores']} cores.\n")
    print(", ".join(f"{report[name]} {name}" for name in ("accepted", *WRONG)))
    print(f"repeated by clients: {report['repeatedByClients'] or 'nothing'}")
    for problem in (report["audit"]["violations"][:10], report["notBack"]):
        if problem:
            print(problem)


def _in_cell(line: dict[str, Any], span: str) -> str:
    names = ("p50", "p99", "max") if line["hits"] >= FEWEST_FOR_P99 else ("p50", "max")
    times = {name: f"{line[span][name]:.1f}" for name in names if line["hits"] > line["never"]}
    return " / ".join(times.get(name, "-") for name in ("p50", "p99", "max"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="number of kills and pauses")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end earlier, after that time")
    parser.add_argument("--processes", type=int, default=2, help="of each service")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims")
    parser.add_argument("--victims", default="", help="kinds of victims, separated by commas; all by default")
    parser.add_argument("--rate", type=float, default=15, help="orders per second")
    parser.add_argument("--logs", type=Path, help="directory to which the logs are copied at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    with own_stack("--cluster", offset=OFFSET, settings=SETTINGS) as directory:
        try:
            report = uvloop.run(run(locate_stack(directory), directory, options))
        finally:
            if options.logs is not None:
                shutil.copytree(Layout(directory).logs, options.logs, dirs_exist_ok=True)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
