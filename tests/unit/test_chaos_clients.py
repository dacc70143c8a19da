"""The clients of chaos, and their record of requests and answers, over services that answer as a test wants."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from chaos.clients import Clients
from chaos.records import Journal
from chaos.shop import draw
from chaos.stored import Stored
from chaos.verdict import compare
from shared.services import INVENTORY, ORDER, PAYMENT
from tests.support.eventually import eventually

Handler = Callable[[web.Request], Awaitable[web.Response]]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHORTEST_PAUSE", "LONGEST_PAUSE", "LOOKS_EVERY"):
        monkeypatch.setattr(f"chaos.clients.{name}", 0.0)


class Shop:
    """Services that take every request at once, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.balance = Counter[str]()
        self.answers: dict[str, dict[str, Any]] = {}
        self.before: list[tuple[int, str]] = []
        """What the next requests are answered with instead."""

    async def handle(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            status = "COMPLETED" if ("deliver" in str(self.asked)) else "CONFIRMED"
            return web.json_response({"status": status, "settled": True})
        key = request.headers["Idempotency-Key"]
        self.asked.append((request.path, key))
        if self.before:
            code, detail = self.before.pop(0)
            return web.json_response({"detail": detail}, status=code)
        return web.json_response(
            self.answers.setdefault(f"{request.path} {key}", self.answer(request.path)), status=202
        )

    def answer(self, path: str) -> dict[str, Any]:
        number = len(self.answers)
        retainer = {"_id": "r1", "currentBalance": 100 - number}
        return {"orderId": f"o{number}", "holdId": f"h{number}", "refundId": f"f{number}", "retainer": retainer}


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def clients_of(urls: list[str], journal: Journal, rate: float = 200.0) -> AsyncIterator[Clients]:
    known = {service.name: urls for service in (ORDER, INVENTORY, PAYMENT)}
    headers = {"Authorization": "Bearer secret"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield Clients(session, known, journal, ["r1"], seed=1, rate=rate)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "answers.jsonl")


async def test_clients_do_what_they_are_to_and_everything_is_on_record(journal: Journal) -> None:
    shop = Shop()
    with journal:
        async with served(shop.handle) as url, clients_of([url], journal) as clients, clients.coming():
            await eventually(lambda: len(journal.requests) > 100)
    kinds = Counter(request.kind for request in journal.requests.values())
    assert kinds.keys() == {"order", "hold", "cancel", "deliver", "refund", "posting"}
    assert all(request.accepted and len(request.ids) == 1 for request in journal.requests.values())
    assert clients.availability.share == 1.0
    assert clients.availability.requests == len(journal.requests)
    repeated = draw_first_that_repeats()
    assert len(journal.requests[f"order of customer-{repeated}"].answers) == 1 + draw(1, repeated, ["r1"]).repeats
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert {line["key"] for line in lines} == journal.requests.keys()
    assert sum("status" in line for line in lines) == sum(len(each.answers) for each in journal.requests.values())
    assert "secret" not in journal.path.read_text()
    assert journal.path.stat().st_mode & 0o077 == 0


def draw_first_that_repeats() -> int:
    visits = (draw(1, number, ["r1"]) for number in range(60))
    return next(visit.number for visit in visits if visit.what == "order" and visit.repeats)


async def test_an_order_is_repeated_under_its_key_at_the_other_process(journal: Journal) -> None:
    first, second = Shop(), Shop()
    first.before = [(503, "no database")] * 2
    second.before = [(429, "too many")]
    with journal:
        async with (
            served(first.handle) as one,
            served(second.handle) as two,
            clients_of([one, two], journal) as clients,
        ):
            answer = await clients.probe(of_server=False)
    assert answer is not None
    assert answer.id == "o0"
    assert [*first.asked, *second.asked] == [("/orders", "order of probe-1")] * 4
    seen = clients.availability
    assert (seen.requests, seen.at_first_try) == (1, 0)
    assert seen.repeated_because == {"no database": 2, "too many": 1}
    assert len(seen.accepted_at) == 1


async def test_a_refusal_is_not_repeated_and_an_answer_that_never_comes_is_given_up(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.clients.GIVE_UP_SECONDS", 0.0)
    shop = Shop()
    shop.before = [(422, "no such product")]
    with journal:
        async with served(shop.handle) as url, clients_of([url], journal) as clients:
            assert await clients.probe(of_server=True) is None
        async with clients_of([url], journal) as clients:  # nothing listens there any more
            clients._probes = iter([2])  # type: ignore[assignment]
            assert await clients.probe(of_server=True) is None
    assert len(shop.asked) == 1
    found = compare(journal.requests.values(), Stored(), [])
    assert [finding.kind for finding in found] == ["refused", "never answered"]


async def test_no_further_clients_come_while_many_wait_for_their_answers(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.clients.MOST_AT_ONCE", 10)
    shop, release, waiting = Shop(), asyncio.Event(), 0

    async def slowly(request: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        await release.wait()
        return await shop.handle(request)

    with journal:
        async with served(slowly) as url, clients_of([url], journal) as clients, clients.coming():
            await eventually(lambda: waiting == 10)
            assert len(journal.requests) == 10
            release.set()
            await eventually(lambda: len(journal.requests) > 20)
    assert all(request.accepted for request in journal.requests.values())


async def test_clients_stay_away_as_long_as_they_are_told_to(journal: Journal) -> None:
    shop = Shop()
    with journal:
        async with served(shop.handle) as url, clients_of([url], journal) as clients:
            with clients.staying_away():
                async with clients.coming():
                    assert (await clients.probe(of_server=False)) is not None
                assert journal.requests.keys() == {"order of probe-1"}
            async with clients.coming():
                await eventually(lambda: len(journal.requests) > 1)


async def test_an_answer_that_makes_no_sense_ends_the_run(journal: Journal) -> None:
    async def nonsense(_request: web.Request) -> web.Response:
        return web.json_response({"unknown": 1}, status=202)

    with journal:
        async with served(nonsense) as url, clients_of([url], journal) as clients:
            with pytest.raises(KeyError):
                async with clients.coming():
                    await eventually(lambda: len(journal.requests) > 3)


async def test_a_run_that_is_cancelled_waits_for_nobody(journal: Journal) -> None:
    never = asyncio.Event()

    async def silent(_request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async def run(clients: Clients) -> None:
        async with clients.coming():
            await never.wait()

    with journal:
        async with served(silent) as url, clients_of([url], journal) as clients:
            running = asyncio.create_task(run(clients))
            await eventually(lambda: len(journal.requests) > 3)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert not clients._visits
            never.set()
    assert not any(request.answers for request in journal.requests.values())
