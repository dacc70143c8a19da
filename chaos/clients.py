"""Clients who come at a steady rate, and ask again under the same key until they are answered."""

import asyncio
import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.records import Answer, Journal, Request
from chaos.shop import GOODS, HOLD_SECONDS, PRICE, Body, Visit, body_of_goods, body_of_server, draw
from shared.services import INVENTORY, ORDER, PAYMENT

ANSWER_WITHIN = 5.0
"""More than an election. Then the request is repeated, at another process."""
GIVE_UP_SECONDS = 300.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""The pauses of a client before it asks again: each is longer than the one before, so that many do not keep a service
from recovering."""
MOST_AT_ONCE = 100
"""Clients who wait for their answers. No more come then: a slow machine would have no time left to recover."""
LOOKS_EVERY, LOOKS_FOR = 0.5, 60.0
"""How often, and for how long, a client looks whether its order is fulfilled."""


@dataclass(slots=True)
class Availability:
    """How many requests were answered at the first attempt, and when orders were accepted, in Unix seconds."""

    requests: int = 0
    at_first_try: int = 0
    accepted_at: list[float] = field(default_factory=list)
    repeated_because: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """The share of requests that were answered at the first attempt; 1 if there were none."""
        return self.at_first_try / self.requests if self.requests else 1.0

    @property
    def longest_gap(self) -> float:
        """The longest time in seconds without an accepted order."""
        return max((later - earlier for earlier, later in itertools.pairwise(sorted(self.accepted_at))), default=0.0)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, which is sent until it is answered."""

    service: str
    path: str
    body: Body | None
    id_of: Callable[[Any], str]
    """Finds the id of what it is about in the answer's body."""


class Clients:
    """All clients of a run, by number. `urls` has the addresses of the processes of each service."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Mapping[str, Sequence[str]],
        journal: Journal,
        retainers: Sequence[str],
        *,
        seed: int,
        rate: float,
    ) -> None:
        self._session = session
        self._urls: dict[str, Iterator[str]] = {name: itertools.cycle(known) for name, known in urls.items()}
        self._journal = journal
        self._retainers = retainers
        self._seed = seed
        self._rate = rate
        self._timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN)
        self._visits: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self._open = asyncio.Event()
        self._open.set()
        self._probes = itertools.count(1)
        self.availability = Availability()

    @contextlib.asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """Let clients come as long as the context lasts, and wait until each has its answers.

        Raises what a client has met that is neither an answer nor the lack of one.
        """
        source = asyncio.create_task(self._come())
        try:
            yield
        except BaseException:
            for visit in self._visits:
                visit.cancel()
            raise
        finally:
            source.cancel()
            if self._visits:
                await asyncio.wait(self._visits)
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def staying_away(self) -> Iterator[None]:
        """Let no further clients come as long as the context lasts."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def _come(self) -> None:
        due = time.monotonic()
        for number in range(sys.maxsize):
            await self._open.wait()
            await self._room.acquire()
            # Those who had to wait for room do not come all at once afterwards.
            due = max(due + 1 / self._rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            visit = asyncio.create_task(self._visit(draw(self._seed, number, self._retainers)))
            self._visits.add(visit)
            visit.add_done_callback(self._leave)

    def _leave(self, visit: asyncio.Task[None]) -> None:
        self._visits.discard(visit)
        self._room.release()
        if not visit.cancelled() and (failure := visit.exception()) is not None:
            self._failure = failure

    async def probe(self, *, of_server: bool) -> Answer | None:
        """Place one more order now; return the answer that accepted it, None if the client gave up."""
        number = next(self._probes)
        customer = f"probe-{number}"
        body = body_of_server(customer, -number) if of_server else body_of_goods(customer)
        return await self._order(f"order of {customer}", customer, body)

    # --- What a client does. ---

    async def _visit(self, visit: Visit) -> None:
        if visit.what == "posting":
            await self._post(visit)
            return
        body, key = dict(visit.body), f"order of {visit.customer}"
        if visit.is_held_first and (hold := await self._hold(visit)) is not None:
            body["holdId"] = hold.id
        if (placed := await self._order(key, visit.customer, body)) is None:
            return
        for _ in range(visit.repeats):
            await self._once_more(self._journal.requests[key], _order_call(body))
        await self._afterwards(visit, str(placed.id))

    async def _order(self, key: str, customer: str, body: Body) -> Answer | None:
        answer = await self._ask(Request(key, "order", customer, body), _order_call(body))
        if answer is not None:
            self.availability.accepted_at.append(answer.at)
        return answer

    async def _hold(self, visit: Visit) -> Answer | None:
        items = visit.body["items"]
        asked: Body = {"userId": visit.customer, "items": items, "ttlSeconds": HOLD_SECONDS}
        if "delivery" in visit.body:
            asked["slot"] = visit.body["delivery"]["slot"]
        request = Request(f"hold of {visit.customer}", "hold", visit.customer, asked)
        return await self._ask(request, Call(INVENTORY.name, "/holds", asked, lambda body: str(body["holdId"])))

    async def _post(self, visit: Visit) -> None:
        retainer, operation = visit.body["retainer"], visit.body["operation"]
        key = f"posting of {visit.customer}"
        named = {"description": key} if operation == "consume" else {"paymentId": key}
        body = {"amount": visit.body["amount"], **named}
        call = Call(PAYMENT.name, f"/api/retainers/{retainer}/{operation}", body, _balance)
        request = Request(key, "posting", retainer, body)
        await self._ask(request, call)
        for _ in range(visit.repeats):
            await self._once_more(request, call)

    async def _afterwards(self, visit: Visit, order_id: str) -> None:
        if visit.afterwards == "nothing":
            return
        if visit.afterwards == "cancel":
            await self._act("cancel", order_id)
            return
        if not await self._becomes("CONFIRMED", order_id):
            return
        if visit.afterwards.startswith("deliver"):
            await self._act("deliver", order_id)
            if not await self._becomes("COMPLETED", order_id):
                return
        total = visit.body["totalAmount"]
        bodies: dict[str, Body] = {
            "refund": {"amount": PRICE / 2},
            "refund units": {"items": [{"productId": GOODS, "quantity": 1}], "restock": True},
            "refund all": {"amount": total},
            "deliver and refund": {"amount": PRICE / 4},
        }
        if (body := bodies.get(visit.afterwards)) is not None:
            await self._refund(visit, order_id, body)

    async def _act(self, what: Any, order_id: str) -> None:
        call = Call(ORDER.name, f"/orders/{order_id}/{what}", None, lambda body: str(body["orderId"]))
        await self._ask(Request(f"{what} {order_id}", what, order_id), call)

    async def _refund(self, visit: Visit, order_id: str, body: Body) -> None:
        call = Call(ORDER.name, f"/orders/{order_id}/refunds", body, lambda said: str(said["refundId"]))
        request = Request(f"refund of {visit.customer}", "refund", order_id, body)
        await self._ask(request, call)
        for _ in range(visit.repeats):
            await self._once_more(request, call)

    async def _becomes(self, status: str, order_id: str) -> bool:
        """Wait until an order is settled; return whether it has this status, False if it takes too long."""
        deadline = time.monotonic() + LOOKS_FOR
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                url = f"{next(self._urls[ORDER.name])}/orders/{order_id}"
                async with self._session.get(url, timeout=self._timeout) as answer:
                    if answer.status == 200 and (order := await answer.json())["settled"]:
                        return bool(order["status"] == status)
            await asyncio.sleep(LOOKS_EVERY)
        return False

    # --- How a client asks. ---

    async def _ask(self, request: Request, call: Call) -> Answer | None:
        """Send a request until it is answered; return the answer that accepted it, else None."""
        self._journal.begin(request)
        self.availability.requests += 1
        deadline = time.monotonic() + GIVE_UP_SECONDS
        for attempt in itertools.count():
            answer = await self._send(request, call)
            if answer.is_final:
                self.availability.at_first_try += attempt == 0
                return answer if answer.is_acceptance else None
            self.availability.repeated_because[answer.error or str(answer.status)] += 1
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(min(LONGEST_PAUSE, SHORTEST_PAUSE * (attempt + 1)))
        raise AssertionError("it is asked without end")

    async def _once_more(self, request: Request, call: Call) -> None:
        """Send a request again that has been answered, under the same key, until it is answered again."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < deadline:
            if (await self._send(request, call)).is_final:
                return
            await asyncio.sleep(LONGEST_PAUSE)

    async def _send(self, request: Request, call: Call) -> Answer:
        answer = await self._answer(request.key, call)
        self._journal.note(request, answer)
        return answer

    async def _answer(self, key: str, call: Call) -> Answer:
        url = next(self._urls[call.service]) + call.path
        try:
            async with self._session.post(
                url, json=call.body, headers={"Idempotency-Key": key}, timeout=self._timeout
            ) as answer:
                body = await answer.json(content_type=None) if answer.content_length != 0 else {}
                if answer.status < 300:
                    return Answer(time.time(), answer.status, call.id_of(body))
                return Answer(time.time(), answer.status, error=str((body or {}).get("detail", ""))[:200] or None)
        except TimeoutError:
            return Answer(time.time(), None, error="no answer in time")
        except aiohttp.ClientError as error:
            return Answer(time.time(), None, error=type(error).__name__)


def _order_call(body: Body) -> Call:
    return Call(ORDER.name, "/orders", body, lambda said: str(said["orderId"]))


def _balance(said: Any) -> str:
    """Return what tells one answer about a retainer from the next: a repetition gets the first one again."""
    return f"{said['retainer']['_id']} with {said['retainer']['currentBalance']}"
