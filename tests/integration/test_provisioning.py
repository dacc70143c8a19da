"""Handlers and worker of the provisioning service over a real database and the provider's simulator.

The clock moves only when a test advances it, so the delays are the real ones and cost no time.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from provisioning_service.api import show_job
from provisioning_service.handlers import JobHandlers
from provisioning_service.job import State, Step
from provisioning_service.provider import ProviderUnansweredError
from shared.clock import to_rfc3339
from shared.contracts import (
    CancelProvisioning,
    Message,
    PackageLowIps,
    ProvisioningCompleted,
    ProvisioningFailed,
    ProvisioningProgress,
    ProvisionServer,
)
from shared.contracts.provisioning import Server
from shared.errors import BusUnavailableError
from tests.support.failure_codes import code_of
from tests.support.monitoring import counted
from tests.support.provisioning_workers import (
    DEFAULT_TIMEOUTS,
    LONG_TIMEOUT,
    ProvisioningWorker,
    jobs_running,
    provisioning_worker,
    request,
)
from tests.support.simulators import Simulator, package, run_simulator

KEY = "103.181.91"
NO_ADDRESS = "Package has no available IPs"


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with run_simulator() as running:
        await running.packages([package(KEY, 9), package("10.0.0", 3)])
        yield running


@pytest.fixture
async def worker(mongodb_url: str, database_prefix: str, simulator: Simulator) -> AsyncIterator[ProvisioningWorker]:
    async with provisioning_worker(mongodb_url, database_prefix, simulator) as running:
        yield running


async def provision(worker: ProvisioningWorker, **changes: Any) -> ProvisionServer:
    """Take a request and work on it until nothing is due."""
    message = request(**changes)
    await worker.take(message)
    await worker.settle()
    return message


async def retry(worker: ProvisioningWorker, message: ProvisionServer, run: int = 2) -> None:
    await worker.take(message.model_copy(update={"run": run}))
    await worker.settle()


async def states(worker: ProvisioningWorker, *messages: ProvisionServer) -> Counter[State]:
    return Counter([(await worker.job(message.order_id)).state for message in messages])


def ends(worker: ProvisioningWorker, order_id: str) -> list[Message]:
    """Return the final messages of the order's runs, without repetitions."""
    final = [m for m in worker.publisher.sent if isinstance(m, ProvisioningCompleted | ProvisioningFailed)]
    return list({m.to_json(): m for m in final if m.order_id == order_id}.values())


def failed(message: ProvisionServer, reason: str, **changes: Any) -> ProvisioningFailed:
    fields: dict[str, Any] = {"order_id": message.order_id, "reason": reason, "code": code_of(reason), "run": 1}
    return ProvisioningFailed(**(fields | changes))


class Gate:
    """Holds the provider's calls of one name until it is opened; `calls` lists all calls."""

    def __init__(self, worker: ProvisioningWorker, call: str, *, after: bool = False) -> None:
        self.calls: list[tuple[str, str]] = []
        self._call, self._reached, self._open = call, asyncio.Event(), asyncio.Event()
        if after:
            worker.provider.after = self._pass
        else:
            worker.provider.before = self._pass

    async def _pass(self, call: str, ip: str) -> None:
        self.calls.append((call, ip))
        if call == self._call:
            self._reached.set()
            await self._open.wait()

    def open(self) -> None:
        self._open.set()

    async def reached(self) -> None:
        async with asyncio.timeout(LONG_TIMEOUT):
            await self._reached.wait()

    def asked(self, call: str) -> list[str]:
        return [ip for name, ip in self.calls if name == call]


@asynccontextmanager
async def held_at(worker: ProvisioningWorker, call: str, *, after: bool = False) -> AsyncIterator[Gate]:
    """Hold the worker at this call of the provider; at the end of the context it continues and settles."""
    gate = Gate(worker, call, after=after)
    settling = asyncio.create_task(worker.settle())
    try:
        await gate.reached()
        yield gate
    finally:
        gate.open()
        await settling


# --- From request to server. ---


async def test_an_order_gets_its_server_and_messages_report_it(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = request()
    assert await worker.take(message) == []
    await worker.settle()
    now = to_rfc3339(worker.clock.now)
    assert show_job(await worker.job(message.order_id)) == {
        "orderId": message.order_id,
        "ownerId": None,
        "package": KEY,
        "ram": 2048,
        "state": "COMPLETED",
        "step": "status",
        "run": 1,
        "attempts": [
            {"step": "check", "at": now, "outcome": "ok", "detail": f"9 free, asking for {KEY}.1"},
            {"step": "buy", "at": now, "outcome": "ok", "detail": f"the provider assigned {KEY}.1"},
            {"step": "verify", "at": now, "outcome": "ok", "detail": f"inside {KEY}"},
            {"step": "status", "at": now, "outcome": "ok", "detail": "the provider said how to get into it"},
        ],
        "nextAttemptAt": None,
        "purchase": None,
        "ip": f"{KEY}.1",
        "wrongIps": [],
        "failureReason": None,
        "createdAt": now,
        "updatedAt": now,
    }
    assert worker.publisher.said(message.order_id) == ["Your server is being provisioned", "Your server is ready"]
    (completed,) = worker.publisher.of(ProvisioningCompleted)
    assert completed == ProvisioningCompleted(
        order_id=message.order_id,
        server=Server(ip=f"{KEY}.1", username="root", os="Ubuntu 22.04", expires_at=completed.server.expires_at),
    )
    assert completed.server.expires_at
    assert [(sold["ip"], sold["ram"]) for sold in await simulator.purchases()] == [(f"{KEY}.1", 2048)]
    assert await worker.locks.held() == []
    assert await worker.ownership.owners([f"{KEY}.1"]) == {f"{KEY}.1": message.order_id}


async def test_the_password_reaches_the_vault_and_nothing_else(
    worker: ProvisioningWorker,
    simulator: Simulator,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await simulator.faults(status={"failNext": 1})
    with caplog.at_level(logging.DEBUG):
        message = await provision(worker)
        worker.clock.advance(60)
        await worker.settle()
    job = await worker.job(message.order_id)
    assert job.credentials is not None
    password = worker.vault.open(message.order_id, job.credentials).password
    assert len(password) > 8
    document = await worker.database["jobs"].find_one({"_id": message.order_id})
    logged = caplog.text + "".join(capsys.readouterr())
    assert "job ended" in logged
    shown = [logged, json.dumps(show_job(job)), repr(job), repr(document)]
    shown += [m.to_json().decode() for m in worker.publisher.sent]
    assert not any(password in text for text in shown)


async def test_five_orders_for_one_package_are_served_in_the_order_of_their_arrival(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    apart = [request() for _ in range(3)]
    for message in apart:
        await worker.take(message)
    together = [request(package=f"{KEY}.x"), request()]
    await worker.take(*together)
    await worker.settle()
    jobs = [await worker.job(message.order_id) for message in (*apart, *together)]
    assert [job.ip for job in jobs] == [f"{KEY}.{number}" for number in range(1, 6)]
    assert all(job.queue_position < behind.queue_position for job, behind in pairwise(jobs)), "positions are unique"
    assert [sold["ip"] for sold in await simulator.purchases()] == [job.ip for job in jobs]


async def test_ten_orders_for_five_servers_in_two_processes(
    worker: ProvisioningWorker, mongodb_url: str, database_prefix: str, simulator: Simulator
) -> None:
    await simulator.packages([package(KEY, 5), package("10.0.0", 9)])
    asked: list[str] = []

    async def count(call: str, ip: str) -> None:
        if call == "buy":
            asked.append(ip)

    messages = [request() for _ in range(10)]
    async with provisioning_worker(mongodb_url, database_prefix, simulator, clock=worker.clock) as other:
        worker.provider.before = other.provider.before = count
        await asyncio.gather(worker.take(*messages[::2]), other.take(*messages[1::2]))
        await asyncio.gather(worker.settle(), other.settle())
        await worker.settle()
        sent = worker.publisher.sent + other.publisher.sent
    assert await states(worker, *messages) == {State.COMPLETED: 5, State.FAILED: 5}
    assert sorted(asked) == [f"{KEY}.{number}" for number in range(1, 6)]
    assert {sold["package"] for sold in await simulator.purchases()} == {KEY}
    servers = [m.server.ip for m in sent if isinstance(m, ProvisioningCompleted)]
    assert sorted(servers) == sorted(asked)
    assert [m.reason for m in sent if isinstance(m, ProvisioningFailed)] == [NO_ADDRESS] * 5


# --- Repeated messages. ---


async def test_a_repeated_request_changes_nothing_at_any_stage(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(status={"failNext": 1})
    message = request()

    async def repeat() -> list[Message]:
        before = await worker.job(message.order_id)
        answers = await worker.take(message, message)
        assert await worker.job(message.order_id) == before
        return answers

    await worker.take(message)
    assert await repeat() == []  # queued
    async with held_at(worker, "buy"):
        assert await repeat() == []  # running
    assert (await worker.job(message.order_id)).state is State.WAITING
    assert await repeat() == []
    worker.clock.advance(60)
    await worker.settle()
    before = counted("repeats_answered_total", operation="provisioning.requested")
    assert await repeat() == ends(worker, message.order_id) * 2
    assert counted("repeats_answered_total", operation="provisioning.requested") == before + 2
    assert len(await simulator.purchases()) == 1


async def test_a_repeated_request_of_a_failed_job_gets_the_same_answer(worker: ProvisioningWorker) -> None:
    message = await provision(worker, package="192.168.0")
    assert await worker.take(message) == ends(worker, message.order_id)
    assert (await worker.take(CancelProvisioning(order_id=message.order_id, run=1))) == ends(worker, message.order_id)


# --- Delays, with the real defaults. ---


async def test_a_failed_purchase_is_repeated_after_exactly_two_and_three_minutes(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"failNext": 3})
    message = await provision(worker)
    for pause in (120, 180):
        waiting = await worker.job(message.order_id)
        assert await worker.waits(message.order_id) == pause
        assert await worker.locks.held() == [], "the package is free meanwhile"
        worker.clock.advance(pause - 1)
        await worker.settle()
        assert await worker.job(message.order_id) == waiting
        worker.clock.advance(1)
        await worker.settle()
    assert (await worker.job(message.order_id)).state is State.FAILED
    assert worker.publisher.said(message.order_id) == [
        "Your server is being provisioned",
        "Waiting 2 minutes before attempt 2 of 3",
        "Waiting 3 minutes before attempt 3 of 3",
    ]
    assert ends(worker, message.order_id) == [
        failed(message, "The server could not be bought in 3 attempts", retryable=True)
    ]
    job = await worker.job(message.order_id)
    assert job.failure_reason == "The server could not be bought in 3 attempts: buyvps: answered 500"
    assert [a.detail for a in job.attempts if a.step is Step.BUY] == [
        f"attempt {number} of 3: buyvps: answered 500" for number in (1, 2, 3)
    ]

    await retry(worker, message)
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert len(await simulator.purchases()) == 1
    assert worker.publisher.said(message.order_id)[3:] == ["Your server is being provisioned", "Your server is ready"]


async def test_attempts_are_counted_by_number_and_runs_by_their_duration(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    def counts() -> list[float]:
        attempts = [("buy", "1"), ("buy", "2"), ("access", "1"), ("access", "2"), ("access", "3")]
        return [
            *(counted("provisioning_attempts_total", call=call, attempt=number) for call, number in attempts),
            counted("provisioning_job_seconds_sum", state="COMPLETED"),
            counted("provisioning_job_seconds_count", state="COMPLETED"),
        ]

    before = counts()
    await simulator.faults(buy={"failNext": 1}, status={"failNext": 1})
    message = await provision(worker)
    for pause in (120, 60):
        worker.clock.advance(pause)
        await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    grown = [after - was for after, was in zip(counts(), before, strict=True)]
    assert grown == pytest.approx([1, 1, 1, 1, 0, 180, 1])


async def test_a_run_is_measured_from_its_own_request(worker: ProvisioningWorker, simulator: Simulator) -> None:
    await simulator.faults(buy={"failNext": 1})
    message = await provision(worker, package="192.168.0")
    worker.clock.advance(86_400)
    before = counted("provisioning_job_seconds_sum", state="COMPLETED")
    await simulator.packages([package("192.168.0", 9)])
    await retry(worker, message)
    worker.clock.advance(120)
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert counted("provisioning_job_seconds_sum", state="COMPLETED") == pytest.approx(before + 120)


async def test_a_failed_status_is_repeated_after_one_and_two_minutes_and_a_retry_continues_there(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(status={"failNext": 3})
    message = await provision(worker)
    for pause in (60, 120):
        waiting = await worker.job(message.order_id)
        assert (await worker.waits(message.order_id), waiting.ip) == (pause, f"{KEY}.1")
        worker.clock.advance(pause - 1)
        await worker.settle()
        assert await worker.job(message.order_id) == waiting
        worker.clock.advance(1)
        await worker.settle()
    assert worker.publisher.said(message.order_id)[1:] == [
        "Waiting 1 minute before attempt 2 of 3",
        "Waiting 2 minutes before attempt 3 of 3",
    ]
    assert ends(worker, message.order_id) == [
        failed(message, "The server was bought but is not ready yet", retryable=True, bought=True)
    ]

    await retry(worker, message)
    job = await worker.job(message.order_id)
    assert (job.state, job.ip, job.run, job.failure_reason) == (State.COMPLETED, f"{KEY}.1", 2, None)
    assert len(await simulator.purchases()) == 1


async def test_a_provider_that_lists_no_packages_is_asked_again(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.packages([])
    fail_once(worker, "packages")
    message = await provision(worker)
    assert await worker.waits(message.order_id) == 120
    await simulator.packages([package(KEY)])
    worker.clock.advance(120)
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}


def fail_once(worker: ProvisioningWorker, *calls: str) -> None:
    """Let the next call of each name get no answer."""
    left = list(calls)

    async def fail(call: str, _ip: str) -> None:
        if call in left:
            left.remove(call)
            raise ProviderUnansweredError(f"{call}: the connection broke")

    worker.provider.before = fail


# --- Lost answers. ---


async def test_a_purchase_with_a_lost_answer_is_found_at_once_and_never_bought_twice(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"loseAnswerNext": 1})
    message = await provision(worker)
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert [sold["ip"] for sold in await simulator.purchases()] == [f"{KEY}.1"]
    assert (await worker.job(message.order_id)).ip == f"{KEY}.1"


async def test_a_purchase_that_takes_effect_late_is_adopted(worker: ProvisioningWorker, simulator: Simulator) -> None:
    fail_once(worker, "buy")
    message = await provision(worker)
    assert await worker.waits(message.order_id) == 5
    worker.clock.advance(5)
    await worker.settle()
    assert await worker.waits(message.order_id) == 5
    await worker.provider.inner.buy(f"{KEY}.1", 2048, before_sending=lambda: None)
    worker.clock.advance(5)
    await worker.settle()
    job = await worker.job(message.order_id)
    assert (job.state, job.ip, job.purchase) == (State.COMPLETED, f"{KEY}.1", None)
    assert len(await simulator.purchases()) == 1


async def test_an_unanswered_attempt_fails_once_the_provider_cannot_be_processing_it(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    fail_once(worker, "buy")
    message = await provision(worker)
    for _ in range(23):
        worker.clock.advance(5)
        await worker.settle()
    assert await worker.waits(message.order_id) == 5  # 115 s have passed
    worker.clock.advance(5)
    await worker.settle()
    assert await worker.waits(message.order_id) == 120
    worker.clock.advance(120)
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert [sold["ip"] for sold in await simulator.purchases()] == [f"{KEY}.1"]


async def test_without_a_search_nothing_is_bought_again(worker: ProvisioningWorker, simulator: Simulator) -> None:
    await simulator.faults(buy={"loseAnswerNext": 1})
    asked: list[str] = []

    async def lose(call: str, _ip: str) -> None:
        asked.append(call)
        if asked == ["packages", "buy", "packages"]:
            raise ProviderUnansweredError("ipstock: the connection broke")

    worker.provider.before = lose
    message = await provision(worker)
    assert await worker.waits(message.order_id) == 120
    worker.clock.advance(120)
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert asked.count("buy") == 1
    assert len(await simulator.purchases()) == 1


async def test_a_retry_adopts_what_the_earlier_run_has_bought(worker: ProvisioningWorker, simulator: Simulator) -> None:
    await simulator.faults(buy={"loseAnswerNext": 1})
    message = request()
    await worker.take(message)

    async def away(call: str, _ip: str) -> None:
        if call == "access":
            raise ProviderUnansweredError("status: no answer within 90 s")

    worker.provider.before = away
    for pause in (0, 120, 180, 180):
        worker.clock.advance(pause)
        await worker.settle()
    assert ends(worker, message.order_id) == [
        failed(message, "The server could not be bought in 3 attempts", retryable=True)
    ]
    worker.provider.before = nothing
    await retry(worker, message)
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert [sold["ip"] for sold in await simulator.purchases()] == [f"{KEY}.1"]


async def nothing(_call: str, _ip: str) -> None:
    return None


# --- Packages for sale. ---


@pytest.mark.parametrize(
    ("name", "package_id", "ip"),
    [
        (KEY, None, f"{KEY}.1"),
        (KEY, "7", f"{KEY}.1"),
        (f"{KEY}.x", "no such id", f"{KEY}.1"),
        ("103.83", None, "103.83.7.1"),
        ("103.83.x", None, "103.83.7.1"),
        ("103.83.*.*", "83", "103.83.7.1"),
        ("103.181.9", None, "103.181.9.1"),
    ],
)
async def test_the_ordered_package_is_bought_from(
    worker: ProvisioningWorker, simulator: Simulator, name: str, package_id: str | None, ip: str
) -> None:
    await simulator.packages(
        [
            package(KEY, 2, id="7"),
            package("103.181.9", 2, id="9"),
            package("103.83.x", ["103.83.7.1", "103.83.9.1"], id="83"),
        ]
    )
    message = await provision(worker, package=name, package_id=package_id)
    assert (await worker.job(message.order_id)).ip == ip
    assert [sold["ip"] for sold in await simulator.purchases()] == [ip]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ([], f"{NO_ADDRESS}: the provider does not list it"),
        ([package(KEY, status="suspended")], f"{NO_ADDRESS}: it is suspended"),
        ([package(KEY, 0)], NO_ADDRESS),
        ([package(KEY, ["103.181.9.1"])], f"{NO_ADDRESS}: those that it lists are not for this order"),
    ],
    ids=["unknown", "not active", "empty", "only addresses outside of it"],
)
async def test_an_unavailable_package_fails_the_job_until_an_operator_retries(
    worker: ProvisioningWorker, simulator: Simulator, listed: list[dict[str, Any]], reason: str
) -> None:
    await simulator.packages([*listed, package("10.0.0")])
    message = await provision(worker)
    assert ends(worker, message.order_id) == [failed(message, reason, retryable=True)]
    assert (await worker.job(message.order_id)).attempts[-1].detail == reason
    assert await simulator.purchases() == []
    worker.clock.advance(3600)
    await worker.settle()
    assert await states(worker, message) == {State.FAILED: 1}

    await simulator.packages([package(KEY, 1)])
    await retry(worker, message)
    assert (await worker.job(message.order_id)).ip == f"{KEY}.1"


async def test_a_package_suspended_between_two_attempts_is_not_bought_from(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"failNext": 1})
    message = await provision(worker)
    await simulator.packages([package(KEY, status="suspended"), package("10.0.0")])
    worker.clock.advance(120)
    await worker.settle()
    assert ends(worker, message.order_id) == [failed(message, f"{NO_ADDRESS}: it is suspended", retryable=True)]
    assert await simulator.purchases() == []


async def test_a_package_that_runs_low_is_announced_once_per_crossing(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.packages([package(KEY, 7)])
    seen = []
    for _ in range(4):  # with 7, 6, 5 and 4 free addresses
        await provision(worker)
        seen.append([low.ipv4 for low in worker.publisher.of(PackageLowIps)])
    assert seen == [[], [], [5], [5]]
    await simulator.packages([package(KEY, [f"{KEY}.{number}" for number in range(100, 107)])])
    for _ in range(3):
        await provision(worker)
    first, second = worker.publisher.of(PackageLowIps)
    assert (first.package, first.ipv4, second.ipv4) == (KEY, 5, 5)
    assert first.at is not None
    assert second.at is not None
    assert first.at <= second.at


# --- Wrong addresses. ---


async def test_a_wrong_address_is_never_given_to_the_order_nor_bought_again(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"wrongIpNext": 1})
    message = await provision(worker)
    job = await worker.job(message.order_id)
    assert ends(worker, message.order_id) == [
        failed(message, "PROVISIONING BLOCKED: Wrong package assigned", bought=True)
    ]
    assert job.failure_reason == f"WRONG PACKAGE ASSIGNED: ordered {KEY}, provider assigned 10.0.0.1"
    assert (job.state, job.ip, job.server, job.wrong_ips) == (State.FAILED, None, None, ("10.0.0.1",))
    assert await worker.database["addresses"].find_one({"_id": "10.0.0.1"}) == {
        "_id": "10.0.0.1",
        "orderId": message.order_id,
        "wrong": True,
        "at": worker.clock.now,
    }
    worker.clock.advance(3600)
    await worker.settle()
    assert len(await simulator.purchases()) == 1
    assert worker.publisher.of(ProvisioningCompleted) == []
    assert await worker.locks.held() == []

    await retry(worker, message)
    job = await worker.job(message.order_id)
    assert (job.ip, job.wrong_ips) == (f"{KEY}.1", ("10.0.0.1",))


async def test_the_wrong_address_of_one_order_is_not_sold_to_another(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"wrongIpNext": 1})
    await provision(worker)
    await simulator.packages([package("10.0.0", 3)])  # the provider lists 10.0.0.1 as free again
    other = await provision(worker, package="10.0.0")
    assert (await worker.job(other.order_id)).ip == "10.0.0.2"


async def test_an_address_of_another_order_blocks_the_order(worker: ProvisioningWorker, simulator: Simulator) -> None:
    async def given_meanwhile(call: str, ip: str) -> None:
        if call == "buy":
            await worker.ownership.claim(ip, "another", worker.clock.now)

    worker.provider.after = given_meanwhile
    message = await provision(worker)
    job = await worker.job(message.order_id)
    assert ends(worker, message.order_id) == [
        failed(message, "PROVISIONING BLOCKED: Address assigned twice", bought=True)
    ]
    assert job.failure_reason == f"ADDRESS ASSIGNED TWICE: provider assigned {KEY}.1, which belongs to order another"
    assert await worker.ownership.owners([f"{KEY}.1"]) == {f"{KEY}.1": "another"}
    assert len(await simulator.purchases()) == 1


# --- Cancellations. ---


def cancellation(message: ProvisionServer, run: int = 1) -> CancelProvisioning:
    return CancelProvisioning(order_id=message.order_id, run=run)


async def test_a_cancellation_that_overtakes_its_request_wins(worker: ProvisioningWorker, simulator: Simulator) -> None:
    message = request()
    assert await worker.take(cancellation(message)) == [failed(message, "Cancelled")]
    assert await worker.take(message) == [failed(message, "Cancelled")]
    await worker.settle()
    assert await simulator.purchases() == []


async def test_within_a_batch_the_first_message_of_an_order_decides(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    one, other = request(), request()
    answers = await worker.take(one, cancellation(other), cancellation(one), other)
    assert [answer for answer in answers if isinstance(answer, ProvisioningFailed)] == [
        failed(other, "Cancelled"),
        failed(one, "Cancelled"),
        failed(other, "Cancelled"),
    ]
    await worker.settle()
    assert await simulator.purchases() == []


async def test_a_queued_job_is_cancelled_at_once(worker: ProvisioningWorker, simulator: Simulator) -> None:
    message = request()
    await worker.take(message)
    assert await worker.take(cancellation(message)) == [failed(message, "Cancelled")]
    unpublished = [each.routing_key for each in (await worker.job(message.order_id)).outbox]
    assert unpublished == [ProvisioningProgress.routing_key], "the answer is not in the outbox as well"
    await worker.settle()
    assert await simulator.purchases() == []


async def test_a_job_between_two_attempts_is_cancelled_once_it_has_certainly_bought_nothing(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"failNext": 1})
    message = await provision(worker)
    assert await worker.take(cancellation(message)) == []
    await worker.settle()
    assert ends(worker, message.order_id) == [failed(message, "Cancelled")]
    assert await simulator.purchases() == []


async def test_a_cancelled_job_that_has_bought_without_an_answer_completes(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    fail_once(worker, "buy")
    message = await provision(worker)
    await worker.provider.inner.buy(f"{KEY}.1", 2048, before_sending=lambda: None)
    assert await worker.take(cancellation(message)) == []
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}


async def test_a_job_after_a_failed_check_is_cancelled_at_once(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    fail_once(worker, "packages")
    message = await provision(worker)
    assert await worker.take(cancellation(message)) == [failed(message, "Cancelled")]


async def test_a_job_that_is_about_to_buy_is_stopped(worker: ProvisioningWorker, simulator: Simulator) -> None:
    message = request()
    await worker.take(message)
    async with held_at(worker, "packages"):
        assert await worker.take(cancellation(message)) == []
    assert ends(worker, message.order_id) == [failed(message, "Cancelled")]
    assert await simulator.purchases() == []
    assert await worker.locks.held() == []


async def test_a_cancellation_during_a_failing_check_ends_the_job(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = request()
    await worker.take(message)

    async def cancel_and_fail(call: str, _ip: str) -> None:
        await worker.take(cancellation(message))
        raise ProviderUnansweredError("ipstock: the connection broke")

    worker.provider.before = cancel_and_fail
    await worker.settle()
    assert ends(worker, message.order_id) == [failed(message, "Cancelled")]


async def test_a_purchase_in_progress_completes_after_a_cancellation(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = request()
    await worker.take(message)
    async with held_at(worker, "buy"):
        assert await worker.take(cancellation(message)) == []
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert len(await simulator.purchases()) == 1


async def test_a_failed_purchase_is_not_repeated_after_a_cancellation(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"failNext": 1})
    message = request()
    await worker.take(message)
    async with held_at(worker, "buy"):
        await worker.take(cancellation(message))
    assert ends(worker, message.order_id) == [failed(message, "Cancelled")]
    assert await simulator.purchases() == []


async def test_a_job_that_has_bought_completes_after_a_cancellation(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(status={"failNext": 1})
    message = await provision(worker)
    assert await worker.take(cancellation(message)) == []
    worker.clock.advance(60)
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert await worker.take(cancellation(message)) == ends(worker, message.order_id)


async def test_a_cancellation_that_overtakes_the_request_of_a_retry_stops_the_retry(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = await provision(worker, package="192.168.0")
    await worker.take(cancellation(message, run=2))
    await retry(worker, message)
    assert ends(worker, message.order_id)[-1] == failed(message, "Cancelled", run=2)
    assert await simulator.purchases() == []


async def test_a_late_cancellation_of_a_run_does_not_stop_the_next(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.packages([])
    message = await provision(worker)
    await simulator.packages([package(KEY)])
    await worker.take(message.model_copy(update={"run": 2}))
    await worker.take(cancellation(message, run=1))
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}


async def test_concurrent_requests_and_cancellations_get_the_same_answer(worker: ProvisioningWorker) -> None:
    messages = [request() for _ in range(20)]
    batches: list[list[ProvisionServer | CancelProvisioning]] = [[*messages], [cancellation(m) for m in messages]]
    await asyncio.gather(*(worker.take(*batch) for batch in batches * 4))
    assert await states(worker, *messages) == {State.FAILED: 20}
    for message in messages:
        assert await worker.take(message) == [failed(message, "Cancelled")]


# --- The queue and the lock. ---


@asynccontextmanager
async def stuck(worker: ProvisioningWorker) -> AsyncIterator[tuple[ProvisionServer, ProvisionServer]]:
    """Hold one order while it buys, with another one behind it; at the end of the context it continues."""
    holder, behind = request(), request()
    await worker.take(holder)
    await worker.take(behind)
    gate = Gate(worker, "buy")
    await worker.scheduler.start_due_jobs()
    try:
        await gate.reached()
        yield holder, behind
    finally:
        gate.open()


async def test_a_job_behind_a_holder_without_progress_times_out_and_keeps_waiting(
    worker: ProvisioningWorker,
) -> None:
    async with stuck(worker) as (holder, behind):
        since = worker.clock.now
        worker.clock.advance(29)
        await worker.scheduler.start_due_jobs()
        assert (await worker.job(behind.order_id)).attempts == ()
        for number in (1, 2):
            worker.clock.advance(1 if number == 1 else 30)
            await worker.scheduler.start_due_jobs()
            await worker.scheduler.start_due_jobs()
            job = await worker.job(behind.order_id)
            assert (job.state, job.lock_timeouts) == (State.QUEUED, number)
            assert (job.attempts[-1].step, job.attempts[-1].outcome) == (Step.LOCK, "failed")
            assert f"order {holder.order_id} holds the package" in job.attempts[-1].detail
            assert since.isoformat(timespec="seconds") in job.attempts[-1].detail
        await worker.outbox.publish_posted()
        assert worker.publisher.said(behind.order_id) == ["Your server is being provisioned"]
    await worker.scheduler.wait_until_idle()
    await worker.settle()
    assert await states(worker, holder, behind) == {State.COMPLETED: 2}


async def test_a_long_wait_for_a_package_is_logged_at_5_and_at_30_seconds(worker: ProvisioningWorker) -> None:
    lines: list[list[float]] = []
    async with stuck(worker) as (_, behind):
        for seconds in (4, 3, 3, 19, 3):
            worker.clock.advance(seconds)
            with capture_logs() as logs:
                await worker.scheduler.start_due_jobs()
            waits = [line for line in logs if line["event"] == "still waiting for a package"]
            assert all((line["package"], line["order_id"]) == (KEY, behind.order_id) for line in waits)
            lines.append([line["waited_seconds"] for line in waits])
    assert lines == [[], [7], [], [], [32]]
    await worker.scheduler.wait_until_idle()
    await worker.settle()


async def test_with_one_lock_attempt_a_wait_that_times_out_fails_the_job(
    mongodb_url: str, database_prefix: str, simulator: Simulator
) -> None:
    strict = replace(DEFAULT_TIMEOUTS, lock_attempts=1)
    async with provisioning_worker(mongodb_url, database_prefix, simulator, timeouts=strict) as worker:
        async with stuck(worker) as (holder, behind):
            worker.clock.advance(30)
            await worker.scheduler.start_due_jobs()
            await worker.outbox.publish_posted()
            assert ends(worker, behind.order_id) == [
                failed(behind, f"No turn for package {KEY} within 30 s", retryable=True)
            ]
        await worker.scheduler.wait_until_idle()
        await worker.settle()
        assert await states(worker, holder, behind) == {State.COMPLETED: 1, State.FAILED: 1}
        await retry(worker, behind)
        assert await states(worker, behind) == {State.COMPLETED: 1}


async def test_waiting_behind_orders_with_progress_never_times_out(
    worker: ProvisioningWorker,
) -> None:
    messages = [request() for _ in range(5)]
    await worker.take(*messages)

    async def take_twenty_seconds(call: str, _ip: str) -> None:
        if call in ("packages", "buy"):
            worker.clock.advance(20)
            await worker.scheduler.start_due_jobs()

    worker.provider.before = take_twenty_seconds
    await worker.settle()
    assert await states(worker, *messages) == {State.COMPLETED: 5}
    jobs = [await worker.job(message.order_id) for message in messages]
    assert [attempt for job in jobs for attempt in job.attempts if attempt.step is Step.LOCK] == []


async def test_packages_do_not_wait_for_each_other(worker: ProvisioningWorker, simulator: Simulator) -> None:
    async with stuck(worker) as (holder, behind):
        elsewhere = request(package="10.0.0")
        await worker.take(elsewhere)
        gate = Gate(worker, "buy")
        await worker.scheduler.start_due_jobs()
        await gate.reached()
        assert gate.asked("buy") == ["10.0.0.1"]
        assert await simulator.purchases() == []
        await jobs_running(worker, 2)
        gate.open()
    await worker.scheduler.wait_until_idle()
    await worker.settle()
    assert await states(worker, holder, behind, elsewhere) == {State.COMPLETED: 3}


async def test_a_holder_whose_lock_was_cleared_does_not_buy_and_continues_later(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = request()
    await worker.take(message)
    gate = Gate(worker, "packages")
    await worker.scheduler.start_due_jobs()
    await gate.reached()
    assert await worker.locks.clear(KEY) is not None
    gate.open()
    await worker.scheduler.wait_until_idle()
    assert gate.calls == [("packages", "")]
    assert await states(worker, message) == {State.QUEUED: 1}
    await worker.settle()
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert len(await simulator.purchases()) == 1


async def test_a_holder_that_was_away_for_longer_than_its_lease_does_not_buy(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    message = request()
    await worker.take(message)
    async with held_at(worker, "buy") as gate:
        worker.clock.advance(120)
    assert gate.asked("buy") == [f"{KEY}.1"] * 2
    assert len(await simulator.purchases()) == 1
    details = [attempt.detail for attempt in (await worker.job(message.order_id)).attempts]
    assert "the lock was lost before the request left: nothing was bought" in details


# --- Published messages. ---


async def test_messages_recorded_while_the_broker_is_away_are_published_later_in_order(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.faults(buy={"failNext": 1})
    message = request()
    await worker.take(message)
    worker.publisher.away = True
    for pause in (0, 120):
        worker.clock.advance(pause)
        with pytest.raises(BusUnavailableError):
            await worker.settle()
    assert (await worker.job(message.order_id)).state is State.COMPLETED

    worker.publisher.away, worker.publisher.sent = False, []
    worker.clock.advance(4)
    await worker.outbox.publish_overdue()
    assert worker.publisher.sent == [], "the process that recorded them may be about to publish them"
    worker.clock.advance(1)
    await worker.outbox.publish_overdue()
    assert [m.message if isinstance(m, ProvisioningProgress) else type(m) for m in worker.publisher.sent] == [
        "Your server is being provisioned",
        "Waiting 2 minutes before attempt 2 of 3",
        "Your server is ready",
        ProvisioningCompleted,
    ]
    await worker.outbox.publish_overdue()
    assert len(worker.publisher.sent) == 4


async def test_messages_that_could_not_be_published_are_published_as_soon_as_the_broker_is_back(
    worker: ProvisioningWorker,
) -> None:
    message = request()
    await worker.take(message)
    worker.publisher.away = True
    with pytest.raises(BusUnavailableError):
        await worker.settle()
    worker.publisher.away, worker.publisher.sent = False, []
    await worker.outbox.publish_posted()
    assert isinstance(worker.publisher.sent[-1], ProvisioningCompleted)


async def test_a_job_whose_messages_cannot_be_sent_holds_up_no_other(worker: ProvisioningWorker) -> None:
    message = request()
    await worker.take(message)
    worker.publisher.away = True
    with pytest.raises(BusUnavailableError):
        await worker.settle()
    worker.publisher.away = False
    job = await worker.job(message.order_id)
    worker.outbox.post(replace(job, order_id="damaged", outbox=(replace(job.outbox[0], routing_key="made.up"),)))
    await worker.outbox.publish_posted()
    assert isinstance(worker.publisher.sent[-1], ProvisioningCompleted)


async def test_a_package_that_became_low_while_the_broker_was_away_is_announced_later(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    await simulator.packages([package(KEY, 5)])
    await worker.take(request())
    worker.publisher.away = True
    with pytest.raises(BusUnavailableError):
        await worker.settle()
    worker.publisher.away = False
    worker.clock.advance(5)
    await worker.outbox.publish_overdue()
    await worker.outbox.publish_overdue()
    assert [low.ipv4 for low in worker.publisher.of(PackageLowIps)] == [5]


# --- Without a provider. ---


async def test_without_a_provider_every_run_is_refused_and_a_later_one_may_succeed(
    worker: ProvisioningWorker, simulator: Simulator
) -> None:
    refusing = JobHandlers(worker.jobs, worker.clock, worker.outbox.post, has_provider=False)
    message = request()
    for run in (1, 2):
        wanted = message.model_copy(update={"run": run})
        refused = failed(message, "No server provider is configured", retryable=True, run=run)
        assert await refusing.handle([wanted]) == [refused]
        assert await refusing.handle([wanted, wanted]) == [refused] * 2
        assert await refusing.handle([cancellation(message, run)]) == [refused]
    await retry(worker, message, run=3)
    assert await states(worker, message) == {State.COMPLETED: 1}
    assert await refusing.handle([message]) == worker.publisher.of(ProvisioningCompleted)


async def test_without_a_provider_existing_jobs_are_paused(worker: ProvisioningWorker) -> None:
    refusing = JobHandlers(worker.jobs, worker.clock, worker.outbox.post, has_provider=False)
    message = request()
    await worker.take(message)
    before = await worker.job(message.order_id)
    assert await refusing.handle([message]) == []
    assert await worker.job(message.order_id) == before
