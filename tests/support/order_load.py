"""Orders placed at a steady rate while a test replaces processes, and two kinds of clients that place them."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import httpx

from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.processes import KEEP_SECONDS, Process, Stack

CHECK_SECONDS = 0.05
MOST_AT_ONCE = 50
PRODUCT = "in-stock"
TIMEOUT_SECONDS = 120


class Client(Protocol):
    """Sends requests to the order service, whichever of its processes answers them."""

    async def post(self, path: str, json: Any = None, key: str | None = None) -> httpx.Response: ...


def new_client(stack: Stack) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=100, keepalive_expiry=KEEP_SECONDS)
    return httpx.AsyncClient(timeout=TIMEOUT_SECONDS, limits=limits, headers=stack.client.headers)


async def served(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Return the answer to a request, sent again while MongoDB is too slow, as on a machine that is busy."""
    while True:
        answer = await send()
        if answer.status_code != 503 or "database" not in answer.json()["detail"]:
            return answer
        await asyncio.sleep(CHECK_SECONDS)


class TryingTwice:
    """A client with a list of `processes`: after a connection error, it sends the request once more to another one."""

    def __init__(self, processes: list[Process], client: httpx.AsyncClient) -> None:
        self.processes = processes
        self._client = client
        self._turns = itertools.count()

    async def post(self, path: str, json: Any = None, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        first = _url(self.processes, next(self._turns))
        try:
            return await self._client.post(first + path, json=json, headers=headers)
        except httpx.TransportError:
            # The list may have changed meanwhile.
            others = [process for process in self.processes if process.url != first] or self.processes
            return await self._client.post(_url(others, next(self._turns)) + path, json=json, headers=headers)


def _url(processes: list[Process], turn: int) -> str:
    return processes[turn % len(processes)].url


class Balancer:
    """A balancer that asks each process for its readiness, sends requests to ready ones, and never sends one twice."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient) -> None:
        self._stack = stack
        self._client = client
        self._turns = itertools.count()
        self._ready: list[Process] = []
        self._in_flight: Counter[str] = Counter()

    async def watch(self) -> None:
        """Ask until cancelled."""
        while True:
            processes = self._stack.processes("order")
            answers = await asyncio.gather(*map(self._is_ready, processes))
            self._ready = [process for process, ready in zip(processes, answers, strict=True) if ready]
            await asyncio.sleep(CHECK_SECONDS)

    async def _is_ready(self, process: Process) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self._stack.client.get(f"{process.url}/readyz")).status_code == 200
        return False

    def chooses(self, process: Process) -> bool:
        return process in self._ready

    def is_done_with(self, process: Process) -> bool:
        """Return whether no further request goes to the process, and none is in progress."""
        return not self.chooses(process) and not self._in_flight[process.url]

    async def post(self, path: str, json: Any = None, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        while not self._ready:
            await asyncio.sleep(CHECK_SECONDS)
        url = _url(self._ready, next(self._turns))
        self._in_flight[url] += 1
        try:
            return await self._client.post(url + path, json=json, headers=headers)
        finally:
            self._in_flight[url] -= 1


class Load:
    """The orders that were placed: one in ten has a card that is declined, another one is cancelled again.

    A `patient` load sends a request again while MongoDB is too slow. Otherwise each answer of the client counts.
    """

    def __init__(self, client: Client, *, patient: bool = True) -> None:
        self._client = client
        self._patient = patient
        self.accepted: list[str] = []
        self.failures: list[str] = []
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self, rate: float) -> None:
        """Place orders until cancelled: `rate` per second, as long as few earlier ones wait for their answers."""
        for number in itertools.count():
            if len(self._requests) < MOST_AT_ONCE:
                request = asyncio.create_task(self._place(number))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)
            await asyncio.sleep(1 / rate)

    async def grown_by(self, number: int, within: float = 120.0) -> None:
        """Wait until this many more orders are accepted."""
        goal = len(self.accepted) + number
        await eventually(lambda: len(self.accepted) >= goal, within, f"{goal} orders to be accepted")

    async def finish(self) -> None:
        await asyncio.gather(*self._requests)

    async def _place(self, number: int) -> None:
        token = "tok_declined" if number % 10 == 3 else "tok_ok"
        items = [{"productId": PRODUCT, "quantity": 1, "price": 10}]
        body = order_body(userId=f"u{number}", items=items, payment={"token": token})
        answer = await self._send("/orders", 202, body, f"order-{number}")
        if answer is not None:
            order_id = answer.json()["orderId"]
            self.accepted.append(order_id)
            if number % 10 == 7:
                await self._send(f"/orders/{order_id}/cancel", (202, 409))

    async def _send(
        self, path: str, expected: int | tuple[int, ...], body: Any = None, key: str | None = None
    ) -> httpx.Response | None:
        try:
            send = partial(self._client.post, path, body, key)
            answer = await (served(send) if self._patient else send())
        except Exception as error:  # noqa: BLE001 - every request that fails is reported
            self.failures.append(f"{path}: {error!r}")
            return None
        if answer.status_code not in (expected if isinstance(expected, tuple) else (expected,)):
            self.failures.append(f"{path}: {answer.status_code} {answer.text[:300]}")
            return None
        return answer


@contextlib.asynccontextmanager
async def steady_orders(client: Client, rate: float, *, patient: bool = True) -> AsyncIterator[Load]:
    """Place orders until the context ends, and then wait for the answers to all of them."""
    load = Load(client, patient=patient)
    placing = asyncio.create_task(load.run(rate))
    try:
        yield load
    finally:
        placing.cancel()
        await load.finish()


async def all_settled(stack: Stack, within: float = 240) -> None:
    """Wait until every order of the stack is settled."""
    url = f"{stack.url('order')}/orders"

    async def none_left() -> bool:
        answer = await stack.client.get(url, params={"settled": "false", "limit": 1})
        return bool(answer.json()["items"] == [])

    await eventually(none_left, within, "all orders to settle")
