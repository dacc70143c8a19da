"""kill -9, a pause, a second process: one server is sold per order, whatever happens to the worker of a job."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from functools import partial

import aio_pika
import pytest

from shared import failpoints as at
from shared.contracts import CancelProvisioning, ProvisionServer
from shared.database import Database
from shared.topology import PROVISIONING_INBOX
from tests.support.eventually import eventually
from tests.support.processes import Process
from tests.support.provisioning_processes import SHORT_LEASES, Hosting, hosting
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import NativeServers, Servers, delete_topology, drop_databases
from tests.support.simulators import package

PACKAGE = "103.181.91"
SOLD = (3, 8, 13, 18) if IS_LONG_FORM else (3, 8)
"""Numbers of sold servers at which one of two processes is killed."""
FOR_EVER = 3600
"""A delay in seconds that holds calls until the test sets another one."""


@pytest.fixture(scope="module")
async def prefix(servers: Servers) -> AsyncIterator[str]:
    """The queues and the database of all tests here, which use them in turn: to make them takes longer than a test."""
    await delete_topology(servers.amqp_url)
    shared = f"t{secrets.token_hex(8)}"
    yield shared
    await delete_topology(servers.amqp_url)
    await drop_databases(servers.mongodb_url, shared)


@pytest.fixture
async def hoster(servers: Servers, prefix: str) -> AsyncIterator[Hosting]:
    async with hosting(servers.mongodb_url, servers.amqp_url, prefix, **SHORT_LEASES) as running:
        await running.simulator.packages([package(PACKAGE, 100)])
        yield running
        for process in running.stack.processes("provisioning"):
            await running.stack.kill(process)
        await empty(running.database, servers.amqp_url)


async def empty(database: Database, amqp_url: str) -> None:
    """Delete all documents, and the one queue with what the killed processes held of it."""
    for name in await database.list_collection_names():
        await database[name].delete_many({})
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.queue_delete(PROVISIONING_INBOX)


STEPS = (
    at.HANDLED,
    at.PUBLISHED,
    at.ACKNOWLEDGED,
    at.JOB_LOCKED,
    at.BEFORE_BUY,
    at.BOUGHT,
    at.ADDRESS_CLAIMED,
    at.BEFORE_STATUS,
    at.JOB_RECORDED,
)


async def test_killed_between_two_steps_one_server_is_bought(hoster: Hosting) -> None:
    """One process after another dies, each at another step, with the jobs that those before it have left."""
    await hoster.stack.kill(await hoster.start())  # it has declared the queue
    orders: list[str] = []
    for point in STEPS:
        # It may die of a job that was left, before it is ready.
        doomed = await hoster.stack.launch("provisioning", crash_at=point)
        orders.append(await hoster.order(PACKAGE))
        await dead(doomed)
        assert doomed.process.returncode == -signal.SIGKILL, "".join(doomed.output)
    await hoster.start()
    await hoster.assert_one_server_each(await hoster.all_ended(orders))
    await hoster.assert_nothing_is_held()


async def test_killed_while_it_waits_for_its_next_attempt(hoster: Hosting) -> None:
    await hoster.simulator.faults(buy={"failNext": 1})
    doomed = await hoster.start(crash_at=at.JOB_WAITING)
    order_id = await hoster.order(PACKAGE)
    await dead(doomed)
    await hoster.start()
    job = await hoster.ended(order_id)
    await hoster.assert_one_server_each([job])
    assert [attempt["outcome"] for attempt in job["attempts"] if attempt["step"] == "buy"] == ["failed", "ok"]


async def test_killed_while_the_provider_sells(hoster: Hosting) -> None:
    """The answer to the request is lost, and the sale happens after the next process has searched for it."""
    await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
    doomed = await hoster.start(buy_timeout_seconds=60)
    order_id = await hoster.order(PACKAGE)
    await eventually(lambda: hoster.simulator.asked_to_buy, 60, "the request to reach the provider")
    await hoster.stack.kill(doomed)
    await hoster.start(buy_timeout_seconds=60)
    await hoster.when(order_id, "WAITING", within=60)  # it has searched and found nothing yet
    assert await hoster.bought() == []
    await hoster.simulator.faults(buy={})  # now the provider sells
    job = await hoster.ended(order_id)
    await hoster.assert_one_server_each([job])
    assert "an attempt without an answer bought" in str(job["attempts"])


async def test_after_an_orderly_end_the_next_process_continues_at_once(hoster: Hosting) -> None:
    """The lease is too long to wait for: at its end a process requeues its jobs."""
    await hoster.simulator.faults(status={"delaySeconds": FOR_EVER})
    process = await hoster.start(lock_lease_seconds=600)
    order_id = await hoster.order(PACKAGE)
    await eventually(lambda: _has_address(hoster, order_id), 60, "the address to be bought")
    process.process.terminate()
    await process.process.wait()
    assert (await hoster.job(order_id))["state"] == "QUEUED"
    await hoster.simulator.faults(status={})
    await hoster.start(lock_lease_seconds=600)
    await hoster.assert_one_server_each([await hoster.ended(order_id)])


async def test_a_process_stops_while_the_database_is_away(own_servers: NativeServers, database_prefix: str) -> None:
    async with hosting(own_servers.mongodb_url, own_servers.amqp_url, database_prefix) as hoster:
        await hoster.simulator.packages([package(PACKAGE, 3)])
        await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
        process = await hoster.start(lock_lease_seconds=600)
        await hoster.order(PACKAGE)
        await eventually(lambda: hoster.simulator.asked_to_buy, 60, "the request to have arrived")
        await own_servers.stop_database()
        process.process.terminate()
        await asyncio.wait_for(process.process.wait(), 60)
        await own_servers.start_database()


async def test_the_database_is_away_while_servers_are_bought(own_servers: NativeServers, database_prefix: str) -> None:
    async with hosting(own_servers.mongodb_url, own_servers.amqp_url, database_prefix) as hoster:
        await hoster.simulator.packages([package(f"103.0.{number}", 3) for number in range(3)])
        await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
        await hoster.start()
        orders = [await hoster.order(f"103.0.{number % 3}") for number in range(6)]
        # A job is recorded as buying before its process knows so and sends the request.
        await eventually(lambda: hoster.simulator.asked_to_buy == 3, 60, "the requests to have arrived")
        await own_servers.stop_database()
        await hoster.simulator.faults(buy={})  # sales cannot be recorded now
        await eventually(lambda: _has_sold(hoster, 3), 60, "three servers to be sold")
        await own_servers.start_database()
        await hoster.assert_one_server_each(await hoster.all_ended(orders))
        await hoster.assert_nothing_is_held()


@pytest.mark.parametrize("early", [True, False])
async def test_a_retry_adopts_what_the_provider_sold_after_the_last_attempt(hoster: Hosting, early: bool) -> None:
    """The job has failed without an answer; the operator's retry comes before or after the sale."""
    await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
    await hoster.start(buy_timeout_seconds=1, buy_attempts=1, buy_retry_delays=5)
    order_id = await hoster.order(PACKAGE)
    failed = await hoster.ended(order_id)
    assert failed["failureReason"] == "The server could not be bought in 1 attempt: buyvps: no answer within 1 s"
    retry = ProvisionServer(order_id=order_id, user_id="u1", package=PACKAGE, ram=2048, run=2)
    if early:
        await hoster.ask(retry)
        await hoster.when(order_id, "WAITING")
    await hoster.simulator.faults(buy={})
    await eventually(lambda: _has_sold(hoster, 1), 60, "the server to be sold")
    await hoster.ask(retry)
    await hoster.when(order_id, "COMPLETED")
    await hoster.assert_one_server_each([await hoster.job(order_id)])


async def test_a_paused_process_that_wakes_after_its_lease_does_not_buy(hoster: Hosting) -> None:
    paused = await hoster.start(crash_at=f"stop:{at.BEFORE_BUY}")
    order_id = await hoster.order(PACKAGE)
    await eventually(lambda: _is_buying(hoster, order_id), 60, "the first process to start buying")
    await hoster.start()
    job = await hoster.ended(order_id)
    await hoster.assert_one_server_each([job])
    paused.process.send_signal(signal.SIGCONT)
    await eventually(lambda: "stopped working on a job" in "".join(paused.output), 60, "the first process to notice")
    await hoster.assert_one_server_each([await hoster.job(order_id)])
    # It still works: either of the two processes can run the next order.
    later = await hoster.ended(await hoster.order(PACKAGE))
    await hoster.assert_one_server_each([await hoster.job(order_id), later])


async def test_two_processes_buy_from_a_package_one_at_a_time(hoster: Hosting) -> None:
    """The provider gets one request at a time for a package, although two processes buy six servers from it."""
    await hoster.simulator.faults(buy={"delaySeconds": 0.2})
    patient = {"lock_lease_seconds": 60, "buy_timeout_seconds": 60}
    await asyncio.gather(hoster.start(**patient), hoster.start(**patient))
    orders = await asyncio.gather(*(hoster.order(PACKAGE) for _ in range(6)))
    most = await _most_buying_at_once(hoster, orders)
    assert most == 1
    jobs = await hoster.all_ended(orders)
    await hoster.assert_one_server_each(jobs)
    await hoster.assert_nothing_is_held()


@pytest.mark.long_form
async def test_killed_again_and_again_every_order_gets_one_server(hoster: Hosting) -> None:
    """One of two processes is killed after every few purchases, and answers get lost as well."""
    await hoster.simulator.packages([package(f"103.0.{number}", 10) for number in range(4)])
    await hoster.simulator.faults(buy={"loseAnswerNext": 5, "delaySeconds": 0.05})
    await asyncio.gather(hoster.start(), hoster.start())
    orders = await asyncio.gather(*(hoster.order(f"103.0.{number % 4}") for number in range(SOLD[-1] + 6)))
    for sold in SOLD:
        await eventually(partial(_has_sold, hoster, sold), 60, f"{sold} servers to be sold")
        await hoster.stack.kill(hoster.stack.processes("provisioning")[0])
        await hoster.start()
    await hoster.assert_one_server_each(await hoster.all_ended(orders))
    await hoster.assert_nothing_is_held()


async def test_a_job_cancelled_while_it_waits_for_the_lock_buys_nothing(hoster: Hosting) -> None:
    await hoster.simulator.faults(buy={"delaySeconds": FOR_EVER})
    await hoster.start(buy_timeout_seconds=60)
    first, second = await hoster.order(PACKAGE), await hoster.order(PACKAGE)
    await eventually(lambda: _is_buying(hoster, first), 60, "the first to buy")
    await hoster.ask(CancelProvisioning(order_id=second))
    cancelled = await hoster.ended(second)
    assert (cancelled["state"], cancelled["failureReason"]) == ("FAILED", "Cancelled")
    await hoster.simulator.faults(buy={})
    await hoster.assert_one_server_each([await hoster.ended(first)])


async def dead(process: Process) -> None:
    await eventually(lambda: not process.alive, 60, "the process to kill itself")


async def _is_buying(hoster: Hosting, order_id: str) -> bool:
    return "purchase" in await hoster.job(order_id)


async def _has_address(hoster: Hosting, order_id: str) -> bool:
    return "ip" in await hoster.job(order_id)


async def _has_sold(hoster: Hosting, number: int) -> bool:
    return len(await hoster.bought()) >= number


async def _most_buying_at_once(hoster: Hosting, orders: list[str]) -> int:
    """Watch until all have ended; return the highest number of jobs with an unanswered request."""
    most = 0
    jobs = hoster.database["jobs"]

    async def all_over() -> bool:
        nonlocal most
        most = max(most, await jobs.count_documents({"purchase.answered": False}))
        return await jobs.count_documents({"_id": {"$in": orders}, "state": "COMPLETED"}) == len(orders)

    await eventually(all_over, 60, "all to be completed")
    return most
