"""Runs chaos: a stack of its own, clients, one fault after the other, and the verdict at the end."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from chaos.clients import Clients
from chaos.clock_faults import has_clock_faults
from chaos.fault import Fault, Injected
from chaos.further_processes import further_processes
from chaos.operator import open_letters, replay_letters
from chaos.records import Journal
from chaos.report import Ending, Hit, Result
from chaos.rounds import Planned, rounds
from chaos.shop import open_shop
from chaos.stack import BACK_WITHIN, ChaosStack
from chaos.stored import SETTLES_WITHIN, Database
from chaos.verdict import compare
from operations.audit import audit
from operations.audit.order_records import OrderRecords
from operations.errors import UnreachableError
from operations.reading.connection import open_mongodb
from shared.errors import StartError
from shared.services import PROVISIONING, SERVICES

PROCESSES = 2
"""Of each service."""
CHECK_SECONDS = 0.1
IMPATIENT_AFTER = 20.0
"""Seconds after which an operator looks for dead letters, if orders do not settle."""
SETTINGS = {
    # Leases and pauses of provisioning are short, so that an order for a server does not wait for minutes.
    "ORDERSAGA_BUY_RETRY_DELAYS": "0.5,1",
    "ORDERSAGA_STATUS_RETRY_DELAYS": "0.5,1",
    "ORDERSAGA_LOCK_LEASE_SECONDS": "5",
    "ORDERSAGA_BUY_TIMEOUT_SECONDS": "10",
    "ORDERSAGA_FAILED_HOLD_SECONDS": "2",
}
JOURNAL = "answers.jsonl"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What to do: at most so many faults of these kinds, for so many seconds, at so many clients per second."""

    faults: Sequence[Fault]
    seed: int
    most: int | None
    seconds: float
    rate: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The kinds that this machine cannot have, and why."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the stack. Every second seed captures cards when the order is fulfilled."""
        return SETTINGS | {"ORDERSAGA_CARD_CAPTURE": "on_confirm" if self.seed % 2 else "immediate"}


async def run(plan: ChaosPlan, directory: Path, tell: Tell) -> Result:
    """Let faults happen to a running stack until they or the time are over, or SIGINT comes; return what it came to.

    `tell` receives a line about each fault.
    """
    began, stack = time.monotonic(), ChaosStack(directory)
    location = stack.location
    async with (
        further_processes(directory, PROCESSES, tuple(SERVICES), own_clocks=has_clock_faults(plan.faults)) as further,
        aiohttp.ClientSession(headers=location.headers, connector=aiohttp.TCPConnector(limit=0)) as session,
        open_mongodb(location.mongodb_url, purpose="chaos", name="ordersaga-chaos") as client,
    ):
        stack.add(further)
        retainers = await open_shop(session, location)
        with Journal(directory / JOURNAL) as journal, _interruption() as stop:
            urls = {service: stack.urls_of(service) for service in SERVICES}
            clients = Clients(session, urls, journal, retainers, seed=plan.seed, rate=plan.rate)
            chaos = Chaos(stack, clients, Database(client, location), stop, tell)
            async with clients.coming():
                ending = await chaos.let_happen(plan)
            await chaos.settle(time.time())
            return await _judge(plan, chaos, ending, journal, began)


async def _judge(plan: ChaosPlan, chaos: "Chaos", ending: Ending, journal: Journal, began: float) -> Result:
    """Compare what is stored in the end with what clients were told, and audit the books. Raises UnreachableError."""
    location, requests = chaos.stack.location, journal.requests.values()
    away = await chaos.stack.away()
    stored, judged = await chaos.database.read(), set[str]()

    def note(records: OrderRecords) -> None:
        if records.order is not None:
            judged.add(records.order_id)

    books = await audit(location.mongodb_url, location.amqp_url, location.database_prefix, on_order=note)
    return Result(
        seed=plan.seed,
        cluster=chaos.stack.is_cluster,
        rate=plan.rate,
        asked=plan.most,
        ending=ending,
        hits=sorted(chaos.hits, key=lambda hit: hit.number),
        findings=compare(requests, stored, judged),
        books=books,
        audited=len(judged),
        accepted=sum(request.kind == "order" and request.accepted is not None for request in requests),
        replayed=chaos.replayed,
        open_letters=await open_letters(location),
        away=away,
        availability=chaos.clients.availability,
        seconds=time.monotonic() - began,
        load_average=os.getloadavg()[1],
        journal=journal.path,
        left_out=plan.left_out,
    )


@contextlib.contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """Yield an event that is set by the first SIGINT; the next one cancels the run."""
    loop, stop, running = asyncio.get_running_loop(), asyncio.Event(), asyncio.current_task()

    def interrupt() -> None:
        if stop.is_set() and running is not None:
            running.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class _InterruptedError(Exception):
    """The run is to end with the fault that is over."""


class Chaos:
    """Lets one fault after the other happen, and waits each time until clients see nothing of it any more."""

    def __init__(
        self, stack: ChaosStack, clients: Clients, database: Database, stop: asyncio.Event, tell: Tell
    ) -> None:
        self.stack = stack
        self.clients = clients
        self.database = database
        self._stop = stop
        self._tell = tell
        self.hits: list[Hit] = []
        self.replayed = 0

    async def let_happen(self, plan: ChaosPlan) -> Ending:
        """Let faults happen; return what ended it."""
        end = time.monotonic() + plan.seconds
        try:
            for upcoming in rounds(plan.faults, plan.seed):
                while upcoming:
                    if plan.most is not None and len(self.hits) >= plan.most:
                        return Ending("all happened", is_whole=True)
                    if time.monotonic() > end:
                        return Ending("the minutes were over", is_whole=True)
                    planned, injected = await self._strike(upcoming)
                    upcoming.remove(planned)
                    self.hits.append(hit := await self._live_through(planned, injected))
                    self._tell(f"{len(self.hits)}{f'/{plan.most}' if plan.most else ''} {hit.in_words()}")
        except _InterruptedError:
            return Ending("interrupted", is_whole=True)
        except (TimeoutError, LookupError, UnreachableError, StartError) as error:
            return Ending(str(error), is_whole=False)
        raise AssertionError("rounds have no end")

    async def _strike(self, upcoming: Sequence[Planned]) -> tuple[Planned, Injected]:
        """Inject the first of these faults that can be had now. Raises TimeoutError if none can for a long time."""
        deadline, why = time.monotonic() + BACK_WITHIN, ""
        while time.monotonic() < deadline:
            for planned in upcoming:
                if self._stop.is_set():
                    raise _InterruptedError
                try:
                    return planned, await planned.fault.strike(self.stack, planned.chance())
                except LookupError as error:
                    why = str(error)
            await asyncio.sleep(CHECK_SECONDS)
        raise TimeoutError(f"no fault was possible for {BACK_WITHIN:g} s: {why}")

    async def _live_through(self, planned: Planned, injected: Injected) -> Hit:
        """See a fault to its end, and measure it."""
        of_server = planned.fault.name == f"{PROVISIONING.name}-killed"
        during: asyncio.Task[float | None] | None = None
        since = injected.at
        try:
            if injected.seconds:
                during = asyncio.create_task(self._recovery(injected.at, of_server=of_server))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), injected.seconds)
                since = time.time()
        finally:
            await injected.repair()
        recovery = await self._recovery(since, of_server=of_server)
        before = time.time()
        all_settled = time.time() - since if await self.settle(before) else None
        if injected.duty is not None:
            await injected.duty()
        return Hit(
            planned.number,
            planned.fault.name,
            planned.fault.title,
            injected.what,
            injected.at,
            lasted=since - injected.at if injected.seconds else 0.0,
            recovery=recovery,
            from_strike=recovery if during is None else await during,
            all_settled=all_settled,
            operator=injected.told,
        )

    async def _recovery(self, since: float, *, of_server: bool) -> float | None:
        """Place an order; return the seconds from a time until it is settled, None if that never comes."""
        answer = await self.clients.probe(of_server=of_server)
        settled_at = await self.database.settled_at(str(answer.id)) if answer is not None else None
        return max(0.0, settled_at - since) if settled_at is not None else None

    async def settle(self, before: float) -> bool:
        """Wait until all orders from before a time are settled.

        If that takes long, no further clients come meanwhile, and dead letters are replayed.
        """
        if await self.database.wait_until_settled(before, IMPATIENT_AFTER):
            return True
        with self.clients.staying_away():
            with contextlib.suppress(UnreachableError):
                self.replayed += await replay_letters(self.stack.location)
            return await self.database.wait_until_settled(before, SETTLES_WITHIN)
