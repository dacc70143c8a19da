"""Funds under load: hundreds of clients move money while processes and the database die, and the books stay right.

Every request has an `Idempotency-Key` and is repeated under it until it is answered. In the end each has one answer,
and the journal must contain exactly what these answers say: nothing twice, nothing missing, nothing more.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pymongo
from pymongo.asynchronous.database import AsyncDatabase

from tests.support import funds_client
from tests.support.access import ADMIN
from tests.support.eventually import eventually
from tests.support.funds_client import Answer, Books, Call, Document, Funds, minor_units, read_books
from tests.support.monitoring import samples_of, value
from tests.support.processes import Stack, run_stack
from tests.support.servers import NativeServers

SECONDS = float(os.environ.get("ORDERSAGA_TEST_FUNDS_SECONDS", "4"))
CLIENTS = 200
CONNECTIONS = 40
"""Requests at once: with many more, a slow machine keeps some accounts busy for as long as a request may take."""
SOME = 100
"""Requests that are answered before each disaster, and after the last one."""
ANSWERED_WITHIN = 180
"""The transaction of a killed process may block its accounts for a minute, and the machine may be slow."""
RETAINERS, BANK_ACCOUNTS, CUSTOMERS = 8, 8, 4
OPENING = 100_000
REPEATED = 200
"""The number of requests answered at the first attempt that are repeated at the end, with all those that took more."""


@dataclass(frozen=True)
class Request:
    """A request; if it is granted, it produces one journal entry with this operation and mark."""

    call: Call
    operation: str | None = None
    mark: str = ""
    moves: Counter[str] = field(default_factory=Counter)
    """The changes of balances, by ledger account."""


@dataclass(frozen=True)
class Done:
    """A request with its key and its answer."""

    key: str
    request: Request
    answer: Answer


class World:
    """The accounts, and random requests about them."""

    def __init__(self, retainers: list[str], banks: list[str]) -> None:
        self.opening = Counter({f"retainer:{name}": OPENING for name in retainers})
        self.opening.update({f"bank:{name}": OPENING for name in banks})
        self._retainers = retainers
        self._banks = banks
        self._payments: dict[str, Request] = {}
        self._transfers: dict[str, Request] = {}
        self._chance = random.Random()

    def request(self, key: str) -> Request:
        """Return a random request; the key identifies its entry if nothing else does."""
        kinds = (self._consume, self._replenish, self._transfer, self._cancel, self._create_payment, self._complete)
        return self._chance.choice(kinds)(key)

    def learn(self, request: Request, answer: Answer) -> None:
        """Remember a new payment or transfer, so that later requests complete or cancel it."""
        if "payment" in answer.body and request.operation is None:
            self._payments[answer.body["payment"]["_id"]] = request
        if request.operation == "transfer.made" and answer.succeeded:
            self._transfers[answer.body["transfer"]["_id"]] = request

    def _consume(self, key: str) -> Request:
        retainer, amount = self._chance.choice(self._retainers), self._amount()
        call = funds_client.consume(retainer, amount, description=key)
        return Request(call, "retainer.consumed", key, Counter({f"retainer:{retainer}": -amount}))

    def _replenish(self, key: str) -> Request:
        retainer, amount = self._chance.choice(self._retainers), self._amount()
        call = funds_client.replenish(retainer, amount, paymentId=key)
        return Request(call, "retainer.replenished", key, Counter({f"retainer:{retainer}": amount}))

    def _transfer(self, key: str) -> Request:
        (source, target), amount, fee = self._chance.sample(self._banks, 2), self._amount(), self._chance.randrange(200)
        call = funds_client.transfer(source, target, amount, fee=funds_client.number(fee), description=key)
        moves = Counter({f"bank:{source}": -amount - fee, f"bank:{target}": amount})
        return Request(call, "transfer.made", key, moves)

    def _cancel(self, key: str) -> Request:
        if not self._transfers:
            return self._transfer(key)
        name, made = self._chance.choice(list(self._transfers.items())[-50:])
        moves = Counter({account: -amount for account, amount in made.moves.items()})
        return Request(funds_client.cancel(name), "transfer.cancelled", name, moves)

    def _create_payment(self, key: str) -> Request:
        customer = f"c{self._chance.randrange(CUSTOMERS)}"
        amount = self._amount()
        moves = Counter({f"customer:{customer}:USD": amount})
        return Request(funds_client.create_payment(customer, amount), moves=moves)

    def _complete(self, key: str) -> Request:
        """Complete one of the latest payments, so that most are completed several times, some concurrently."""
        if not self._payments:
            return self._create_payment(key)
        name, created = self._chance.choice(list(self._payments.items())[-50:])
        return Request(funds_client.complete(name), "payment.completed", name, created.moves)

    def _amount(self) -> int:
        return self._chance.randrange(1, OPENING // 2)


class OneAccount(World):
    """A single retainer, and random requests about it, so that nearly all of them share transactions."""

    def request(self, key: str) -> Request:
        return self._chance.choice((self._consume, self._replenish))(key)


class Load:
    """Clients that send requests until they are stopped, and their answers."""

    def __init__(self, funds: Funds, world: World) -> None:
        self._funds = funds
        self._world = world
        self._stopped = asyncio.Event()
        self._gate = asyncio.Semaphore(CONNECTIONS)
        self._sent = 0
        self.done: list[Done] = []

    async def run(self) -> None:
        """Run all clients until `stop`, and return when each has the answer to its last request."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client())

    def stop(self) -> None:
        self._stopped.set()

    async def runs_for(self, seconds: float) -> None:
        """Wait that many seconds, and until requests have been answered."""
        until, answered = time.monotonic() + seconds, len(self.done) + SOME
        await eventually(
            lambda: time.monotonic() > until and len(self.done) > answered, seconds + ANSWERED_WITHIN, "answers"
        )

    async def _client(self) -> None:
        while not self._stopped.is_set():
            async with self._gate:
                # The load may have been stopped while this client waited for a connection.
                if not self._stopped.is_set():
                    await self._send()

    async def _send(self) -> None:
        self._sent += 1
        key = f"key {self._sent}"
        request = self._world.request(key)
        answer = await self._funds.insist(request.call, key, ANSWERED_WITHIN)
        self._world.learn(request, answer)
        self.done.append(Done(key, request, answer))


@asynccontextmanager
async def under_test(
    servers: NativeServers, prefix: str
) -> AsyncIterator[tuple[Stack, httpx.AsyncClient, pymongo.AsyncMongoClient[Document]]]:
    """A stack without processes, a client for its services, and one for its database."""
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with (
        run_stack(servers.mongodb_url, servers.amqp_url, prefix, log_level="ERROR") as stack,
        httpx.AsyncClient(timeout=30, limits=limits, headers=ADMIN) as http,
        pymongo.AsyncMongoClient[Document](servers.mongodb_url) as mongo,
    ):
        yield stack, http, mongo


@asynccontextmanager
async def running(load: Load) -> AsyncIterator[None]:
    """Run the load until the context ends."""
    task = asyncio.create_task(load.run())
    try:
        yield
    finally:
        load.stop()
        await task


async def test_money_moves_while_processes_and_the_database_die(own_servers: NativeServers, unique_id: str) -> None:
    async with under_test(own_servers, f"t{unique_id}") as (stack, http, mongo):
        await stack.start("payment", "payment")
        funds = Funds(http, lambda: random.choice(stack.processes("payment")).url)
        world = await _open_accounts(funds)
        load = Load(funds, world)
        async with running(load):
            await _disasters(stack, own_servers, load)
        _assert_load_was_mixed(load.done)
        await _assert_answers_stay(funds, load.done)
        await _assert_books_match_answers(mongo[f"t{unique_id}_payments"], world.opening, load.done)
        await stack.assert_books_balance()


async def test_a_process_is_killed_in_the_middle_of_a_group(own_servers: NativeServers, unique_id: str) -> None:
    async with under_test(own_servers, f"t{unique_id}") as (stack, http, mongo):
        await stack.start("payment")
        funds = Funds(http, lambda: random.choice(stack.processes("payment")).url)
        world = OneAccount([await funds.made(funds_client.open_retainer("c1", OPENING), "retainer")], [])
        load = Load(funds, world)
        async with running(load):
            await load.runs_for(0)
            await _kill_in_a_transaction(stack, mongo)
            await stack.start("payment", "payment")
            await load.runs_for(SECONDS / 4)
        assert any(d.answer.attempts > 1 for d in load.done)
        assert sum([await _largest_group_exceeds(http, process.url, 5) for process in stack.processes("payment")]) > 0
        await _assert_answers_stay(funds, load.done)
        await _assert_books_match_answers(mongo[f"t{unique_id}_payments"], world.opening, load.done)
        await stack.assert_books_balance()


async def _kill_in_a_transaction(stack: Stack, mongo: pymongo.AsyncMongoClient[Document]) -> None:
    """Stop the only process at moments of its choice until a transaction is open then, and kill it."""
    (process,) = stack.processes("payment")

    async def is_stopped_in_a_transaction() -> bool:
        process.process.send_signal(signal.SIGSTOP)
        status = await mongo.admin.command("serverStatus")
        if status["transactions"]["currentInactive"]:  # none of its statements is on its way any more
            return True
        process.process.send_signal(signal.SIGCONT)
        return False

    await eventually(is_stopped_in_a_transaction, ANSWERED_WITHIN, "an open transaction")
    await stack.kill(process)


async def _largest_group_exceeds(http: httpx.AsyncClient, url: str, size: int) -> bool:
    samples = samples_of((await http.get(f"{url}/metrics")).text)
    at_most = value(samples, "transaction_group_size_bucket", le=f"{size}.0")
    return value(samples, "transaction_group_size_count") > at_most


async def _open_accounts(funds: Funds) -> World:
    retainers = [await funds.made(funds_client.open_retainer(f"c{n}", OPENING), "retainer") for n in range(RETAINERS)]
    banks = [
        await funds.made(funds_client.open_bank_account(f"b{n}", OPENING), "account") for n in range(BANK_ACCOUNTS)
    ]
    return World(retainers, banks)


async def _disasters(stack: Stack, servers: NativeServers, load: Load) -> None:
    """Kill a process, restart the database, and kill a process again; after each, the requests must continue."""
    await load.runs_for(SECONDS / 4)
    await _kill_one(stack)
    await load.runs_for(SECONDS / 4)
    await servers.stop_database(kill=True)
    await servers.start_database()
    await load.runs_for(SECONDS / 4)
    await _kill_one(stack)
    await load.runs_for(SECONDS / 4)


async def _kill_one(stack: Stack) -> None:
    await stack.kill(stack.processes("payment")[0])
    await stack.start("payment")


def _assert_load_was_mixed(done: list[Done]) -> None:
    """Check that every kind of request was granted and refused, and that some took several attempts."""
    granted = Counter(d.request.operation for d in done if d.answer.succeeded)
    refused = Counter(d.request.operation for d in done if d.answer.status == 400)
    operations = {"retainer.consumed", "transfer.made", "transfer.cancelled", "payment.completed"}
    assert granted.keys() == operations | {"retainer.replenished", None}
    assert refused.keys() == operations
    assert sum(granted.values()) + sum(refused.values()) == len(done), Counter(d.answer.status for d in done)
    assert any(d.answer.attempts > 1 for d in done)


async def _assert_answers_stay(funds: Funds, done: list[Done]) -> None:
    """Check that a repeated key returns the first answer, whatever has become possible since."""
    several = [d for d in done if d.answer.attempts > 1]
    at_once = [d for d in done if d.answer.attempts == 1]
    again = [*several, *random.sample(at_once, min(REPEATED, len(at_once)))]
    gate = asyncio.Semaphore(CONNECTIONS)

    async def repeat(first: Done) -> None:
        async with gate:
            answer = await funds.insist(first.request.call, first.key, ANSWERED_WITHIN)
            assert answer.said == first.answer.said, first

    await asyncio.gather(*map(repeat, again))


async def _assert_books_match_answers(
    database: AsyncDatabase[Document], opening: Counter[str], done: list[Done]
) -> None:
    books = await read_books(database)
    assert books.discrepancies() == []
    granted = [d.request for d in done if d.answer.succeeded and d.request.operation]
    assert _entries(books) == Counter((request.operation, request.mark) for request in granted)
    expected = Counter(opening)
    for request in granted:
        expected.update(request.moves)
    assert {name: account["balance"] for name, account in books.accounts.items()} == expected
    _assert_answers_agree_with(books, done)


def _entries(books: Books) -> Counter[tuple[str | None, str]]:
    """Count each mark in the journal, without the opening balances."""
    marks = [(e["operation"], _mark(e)) for e in books.entries.values() if not e["operation"].endswith(".opened")]
    return Counter(marks)


def _mark(entry: Document) -> str:
    where = {"payment.completed": "paymentId", "retainer.replenished": "paymentId", "transfer.cancelled": "transferId"}
    name = where.get(entry["operation"])
    return str(entry["reference"][name] if name else entry["description"])


def _assert_answers_agree_with(books: Books, done: list[Done]) -> None:
    """Check that the answer to a consumption shows the balance that its own entry produced."""
    after = {
        _mark(entry): posting["balanceAfter"]
        for entry in books.of_operation("retainer.consumed")
        for posting in entry["postings"]
        if posting["account"].startswith("retainer:")
    }
    for d in done:
        if d.request.operation == "retainer.consumed" and d.answer.succeeded:
            assert minor_units(d.answer.body["retainer"]["currentBalance"]) == after[d.key]
