"""A user for each service with the least rights, on a broker that `ordersaga up` starts."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import psutil
import pytest

from operations.dead_letters.connection import record_waiting
from operations.dead_letters.filters import Filters
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replays import NotPossibleError
from operations.dead_letters.service import DeadLetterService
from operations.reading.connection import open_mongodb
from operations.stack.broker_users import BrokerUsers
from operations.stack.layout import Layout
from operations.stack.state import read_state
from order_service.orders import NewRecord, Orders
from shared import topology
from shared.broker_rights import RIGHTS
from shared.bus import Envelope
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.bus.rabbitmq import RabbitBus
from shared.bus.reading import read
from shared.contracts import OrderCreated, PaymentRefunded, RefundPayment
from shared.services import NOTIFICATION, ORDER, PAYMENT
from tests.support import warm_processes
from tests.support.builders import an_order, connected
from tests.support.buses import take_batch
from tests.support.eventually import eventually
from tests.support.guarded_rabbitmq import assert_least_rights, guarded_rabbitmq, passwords_in
from tests.support.stack_users import mongodb_url_of

ROOT = Path(__file__).parents[2]


@dataclass
class Brokers:
    """The servers of a stack without services."""

    data_directory: Path
    deployer_url: str

    def url(self, user: str) -> str:
        deployer = passwords_in(self.data_directory / "secrets")["deployer"]
        mine = passwords_in(self.data_directory / "secrets")[user]
        return self.deployer_url.replace(f"deployer:{deployer}@", f"{user}:{mine}@")


def environment(data_directory: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
    return known | {
        "PYTHONPATH": str(ROOT),
        "ORDERSAGA_DATA_DIR": str(data_directory),
        "XDG_STATE_HOME": str(data_directory / "state"),
    }


def ordersaga(data_directory: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    given = environment(data_directory) | variables
    return warm_processes.run_in_thread("operations.cli", *words, environment=given, within=240)


async def up(data_directory: Path) -> Brokers:
    done = await asyncio.to_thread(ordersaga, data_directory, "up", "--detach", "--only", "")
    assert done.returncode == 0, done.stderr
    deployer_url = read_state(Layout(data_directory)).amqp_url
    assert deployer_url is not None
    return Brokers(data_directory, deployer_url)


@pytest.fixture(scope="module")
async def brokers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Brokers]:
    directory = tmp_path_factory.mktemp('stack #1 with "users"')
    try:
        yield await up(directory)
    finally:
        await asyncio.to_thread(ordersaga, directory, "down")


async def test_each_service_may_do_what_it_needs_and_nothing_else(brokers: Brokers) -> None:
    await assert_least_rights(brokers.url)
    await empty(brokers)


async def test_there_is_no_guest(brokers: Brokers) -> None:
    address = brokers.deployer_url.partition("@")[2].partition("/")[0]
    for virtual_host in ("", "ordersaga"):
        with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
            await aio_pika.connect(f"amqp://guest:guest@{address}/{virtual_host}")


async def test_passwords_are_in_files_for_their_owner_alone_and_in_no_log_or_process_list(brokers: Brokers) -> None:
    passwords = passwords_in(brokers.data_directory / "secrets")
    assert len(set(passwords.values())) == len(RIGHTS)
    kept = {f"rabbitmq-{user}" for user in RIGHTS} | {"state.json"}
    commands = "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    for user, password in passwords.items():
        assert password not in commands, user
        for file in brokers.data_directory.rglob("*"):
            if file.is_file() and password.encode() in file.read_bytes():
                assert file.name in kept, file
                assert file.stat().st_mode & 0o777 == 0o600, file


async def test_messages_carry_the_user_who_sent_them(brokers: Brokers) -> None:
    async with AsyncExitStack() as stack:
        order, payment = [await open_bus(stack, brokers.url(who.user), who.inbox) for who in (ORDER, PAYMENT)]
        await Publisher(order).send([RefundPayment(order_id="o1")])
        (received,) = await take_batch(payment, 1)
        assert (received.user_id, received.routing_key) == ("order", "payment.refund")
        await payment.acknowledge([received])


async def test_retries_and_dead_letters_work_with_the_rights_of_a_service(
    brokers: Brokers, mongodb_url: str, database_prefix: str
) -> None:
    """All levels but the long ones: a shorter ladder would need the rights for its names."""
    async with AsyncExitStack() as stack:
        order, payment = [await open_bus(stack, brokers.url(who.user), who.inbox) for who in (ORDER, PAYMENT)]
        calls = 0

        async def refuse_at_first(messages: Sequence[RefundPayment]) -> Sequence[PaymentRefunded]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ValueError("once")
            return [PaymentRefunded(order_id=message.order_id, status="VOIDED") for message in messages]

        consumer = Consumer(payment, PAYMENT.inbox, {RefundPayment: refuse_at_first})
        running = asyncio.create_task(consumer.run())
        try:
            await Publisher(order).send([RefundPayment(order_id="o1")])
            (answer,) = await take_batch(order, 1)
            assert (answer.routing_key, answer.user_id, calls) == ("payment.refunded", "payment", 2)
            await order.acknowledge([answer])
            await order.publish([Envelope(b"no", topology.EXCHANGE, "payment.refund", "payment.refund", "o2", "m2")])
            letters = await recorded(brokers, mongodb_url, database_prefix, 1)
        finally:
            await consumer.stop()
            await running
    assert [(letter["user"], letter["foreign"], letter["queue"]) for letter in letters] == [
        ("payment", False, PAYMENT.inbox)
    ]


async def test_a_copy_for_another_inbox_is_what_its_routing_key_says(brokers: Brokers) -> None:
    """RabbitMQ 3.10 does not compare the keys in the header CC with the sender's rights."""
    async with AsyncExitStack() as stack:
        inventory = await open_bus(stack, brokers.url("inventory"), None)
        payment = await open_bus(stack, brokers.url("payment"), PAYMENT.inbox)
        copies = {"CC": ["payment.refund"]}
        own = "stock.released"
        forged = Envelope(b'{"orderId":"o1"}', topology.EXCHANGE, own, "payment.refund", "o1", "m1", headers=copies)
        honest = Envelope(b'{"orderId":"o1"}', topology.EXCHANGE, own, own, "o1", "m2", headers=copies)
        await inventory.publish([forged, honest])
        handled: list[str] = []

        async def refund(messages: Sequence[RefundPayment]) -> Sequence[PaymentRefunded]:
            handled.extend(message.order_id for message in messages)
            return ()

        consumer = Consumer(payment, PAYMENT.inbox, {RefundPayment: refund})
        running = asyncio.create_task(consumer.run())
        try:
            letters = await open_bus(stack, brokers.url("operations"), topology.DEAD_LETTERS)
            dead = await take_batch(letters, 2)
            await letters.acknowledge(dead)
        finally:
            await consumer.stop()
            await running
    assert {letter.headers["x-error-message"] for letter in dead} == {
        "the routing key is 'stock.released', but the type is 'payment.refund'",
        "stock.released is not handled here (payment.inbox)",
    }
    assert handled == []
    await empty(brokers)


def forged_letter(routing_key: str, queue: str, **headers: Any) -> Envelope:
    own = {"x-queue": queue, "x-routing-key": routing_key, "x-error-type": "ValueError", "x-error-message": "oops"}
    message_id = f"{routing_key} to {queue}"
    return Envelope(
        b'{"orderId":"o1"}', topology.DEAD_LETTERS, routing_key, routing_key, "o1", message_id, headers=own | headers
    )


async def test_a_dead_letter_of_a_sender_without_the_right_is_foreign_and_left_out_of_replays(
    brokers: Brokers, mongodb_url: str, database_prefix: str
) -> None:
    died = {"reason": "delivery_limit", "queue": PAYMENT.inbox, "count": 1, "exchange": "ordersaga"}
    async with AsyncExitStack() as stack:
        inventory = await open_bus(stack, brokers.url("inventory"), None)
        order = await open_bus(stack, brokers.url("order"), None)
        await inventory.publish(
            [
                forged_letter("payment.refund", PAYMENT.inbox),
                forged_letter("payment.refund", PAYMENT.inbox, **{"x-death": [died]}),
                forged_letter("order.created", "inventory.inbox"),
            ]
        )
        await order.publish([forged_letter("order.created", PAYMENT.inbox)])
        async with await aio_pika.connect(brokers.url("inventory")) as connection, connection.channel() as channel:
            unsigned = aio_pika.Message(b"{}", message_id="unsigned", headers={"x-queue": PAYMENT.inbox})
            await (await channel.get_exchange(topology.DEAD_LETTERS, ensure=False)).publish(unsigned, "payment.refund")
        letters = await recorded(brokers, mongodb_url, database_prefix, 4)
    assert sorted((str(letter["user"]), letter["queue"], letter["foreign"]) for letter in letters) == [
        ("None", PAYMENT.inbox, True),
        ("inventory", "inventory.inbox", False),
        ("inventory", PAYMENT.inbox, True),
        ("order", PAYMENT.inbox, False),
    ]
    async with open_mongodb(mongodb_url, purpose="the test", name="test") as client:
        service = DeadLetterService(client[f"{database_prefix}_operations"])
        foreign = next(letter for letter in letters if letter["user"] == "inventory" and letter["foreign"])
        with pytest.raises(NotPossibleError, match="all matching dead letters are foreign"):
            await service.start_replay(Filters(type="payment.refund"), by="ann", why="")
        everything = await service.replay(await service.start_replay(Filters(), by="ann", why=""))
        alone = await service.replay(await service.start_replay(Filters(ids=(foreign["_id"],)), by="ann", why=""))
    assert everything is not None
    assert alone is not None
    assert (everything["total"], alone["total"]) == (2, 1)


async def test_an_upgraded_data_directory_keeps_its_messages_and_its_virtual_host_and_loses_guest(
    tmp_path: Path,
) -> None:
    former, inbox = "ordersaga.retry.v2.30s", PAYMENT.inbox
    async with guarded_rabbitmq(tmp_path, "ordersaga-former", None) as broker:
        await declare_as_in_a_former_release(broker.url, former)
        bus = RabbitBus(broker.url, topology_mode="trust")
        await bus.start(None)
        body = b'{"orderId":"o1"}'
        await bus.publish(
            [
                Envelope(body, "", inbox, "payment.refund", "o1", "waits"),
                Envelope(body, former, inbox, "payment.refund", "o1", "returns"),
            ]
        )
        await bus.close()
    try:
        brokers = await up(tmp_path)
        assert brokers.deployer_url.endswith("/")
        async with AsyncExitStack() as stack:
            payment = await open_bus(stack, brokers.url("payment"), inbox)
            received = await take_batch(payment, 2)
        assert {delivery.message_id for delivery in received} == {"waits", "returns"}
        with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
            await aio_pika.connect(f"amqp://guest:guest@{brokers.deployer_url.partition('@')[2]}")
        await assert_least_rights(brokers.url)
        findings = json.loads(ordersaga(tmp_path, "doctor", "--json").stdout)["findings"]
        outcomes = {finding["what"]: finding["outcome"] for finding in findings}
        assert {outcomes[what] for what in ("user guest", "rights on the broker", "bindings", "queues")} == {"ok"}
        assert outcomes["former retry queues"] == "note"
    finally:
        await asyncio.to_thread(ordersaga, tmp_path, "down")


async def declare_as_in_a_former_release(url: str, former: str) -> None:
    queues = {queue.name: queue for queue in topology.queues()}
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for exchange in topology.exchanges():
            if exchange.name in (topology.EXCHANGE, topology.DEAD_LETTERS, topology.INBOX_EXCHANGE):
                await channel.declare_exchange(exchange.name, exchange.kind, durable=True, arguments=exchange.arguments)
        for name in (PAYMENT.inbox, topology.DEAD_LETTERS):
            declared = await channel.declare_queue(name, durable=True, arguments=queues[name].arguments)
            for exchange_name, key in queues[name].bindings:
                await declared.bind(exchange_name, key)
        arguments = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once"}
        arguments |= {"x-overflow": "reject-publish", "x-dead-letter-exchange": topology.INBOX_EXCHANGE}
        waiting = await channel.declare_queue(former, durable=True, arguments={**arguments, "x-message-ttl": 6000})
        await waiting.bind(await channel.declare_exchange(former, "fanout", durable=True))


def test_users_for_a_broker_that_somebody_else_runs(tmp_path: Path) -> None:
    made = ordersaga(tmp_path, "topology", "users", "--secrets", str(tmp_path / "passwords"), "--virtual-host", "shop")
    assert made.returncode == 0, made.stderr
    definitions = json.loads(made.stdout)
    passwords = passwords_in(tmp_path / "passwords")
    assert [user["name"] for user in definitions["users"]] == list(RIGHTS)
    assert definitions["vhosts"] == [{"name": "shop"}]
    assert not [password for password in passwords.values() if password in made.stdout]
    again = ordersaga(tmp_path, "topology", "users", "--secrets", str(tmp_path / "passwords"))
    assert passwords_in(tmp_path / "passwords") == passwords
    assert json.loads(again.stdout)["vhosts"] == [{"name": "ordersaga"}]
    (tmp_path / "passwords" / "rabbitmq-order").write_text("short\n")
    refused = ordersaga(tmp_path, "topology", "users", "--secrets", str(tmp_path / "passwords"))
    assert (refused.returncode, "rabbitmq-order does not contain a password" in refused.stderr) == (1, True)


def test_the_url_of_a_user_names_the_virtual_host() -> None:
    given = {"order": "secret"}
    assert BrokerUsers("ordersaga", given).url("order", "h:1") == "amqp://order:secret@h:1/ordersaga"
    assert BrokerUsers("/", given).url("order", "h:1") == "amqp://order:secret@h:1/"
    assert BrokerUsers("a/b", given).url("order", "h:1") == "amqp://order:secret@h:1/a%2Fb"


async def test_the_topology_can_only_be_applied_by_the_deployer(brokers: Brokers) -> None:
    async def apply(user: str, *words: str) -> "subprocess.CompletedProcess[str]":
        given = {"ORDERSAGA_AMQP_URL": brokers.url(user)}
        return await asyncio.to_thread(lambda: ordersaga(brokers.data_directory, "topology", "apply", *words, **given))

    async with await aio_pika.connect(brokers.deployer_url) as connection, connection.channel() as channel:
        await channel.queue_delete("operations.retry.2m")
        refused = await apply("order")
        assert (refused.returncode, "may not declare the topology" in refused.stderr) == (1, True)
        done = await apply("deployer", "--json")
        assert json.loads(done.stdout)["created"] == ["queue operations.retry.2m"]
        again = await apply("deployer")
        assert (again.returncode, "created" in again.stdout) == (0, False)
        assert "27 exchanges, 32 queues, 74 bindings" in again.stdout


async def test_a_recovery_needs_the_deployer_and_only_reads_the_records(brokers: Brokers) -> None:
    """Its messages are taken although no service sent them, also by the inbox to which it sends by name."""

    async def recover(user: str) -> "subprocess.CompletedProcess[str]":
        given = {"ORDERSAGA_AMQP_URL": brokers.url(user)}
        return await asyncio.to_thread(lambda: ordersaga(brokers.data_directory, "recover", "--json", **given))

    placed = an_order(settled=False)
    async with connected(mongodb_url_of(brokers.data_directory), ORDER.database_in("ordersaga")) as database:
        await Orders(database["orders"]).insert([NewRecord(placed)])
    async with await aio_pika.connect(brokers.deployer_url) as connection, connection.channel() as channel:
        await channel.queue_delete(PAYMENT.inbox)

    refused = await recover("operations")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "may not declare the topology" in refused.stderr
    done = await recover("deployer")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["missing"], report["commands"]) == (["queue payment.inbox"], {"order.created": 1})
    assert report["events"] == {"order.created": 1}
    async with AsyncExitStack() as stack:
        for service, copies in ((PAYMENT, 1), (NOTIFICATION, 2)):
            bus = await open_bus(stack, brokers.url(service.user), service.inbox)
            received = await take_batch(bus, copies)
            messages = [read(delivery, {OrderCreated}) for delivery in received]
            assert {(m.correlation_id, d.user_id) for m, d in zip(messages, received, strict=True)} == {
                (placed.order_id, "deployer")
            }
            await bus.acknowledge(received)
    await empty(brokers)


async def open_bus(stack: AsyncExitStack, url: str, queue: str | None) -> RabbitBus:
    bus = RabbitBus(url, topology_mode="check")
    stack.push_async_callback(bus.close)
    await bus.start(queue)
    return bus


async def recorded(brokers: Brokers, mongodb_url: str, prefix: str, number: int) -> list[dict[str, Any]]:
    """Record the dead letters as operations does; return them once there are so many."""
    async with open_mongodb(mongodb_url, purpose="the test", name="test") as client:
        service = DeadLetterService(client[f"{prefix}_operations"])
        await service.prepare()
        records = LetterRecords(client[f"{prefix}_operations"])

        async def all_of_them() -> list[dict[str, Any]] | None:
            await record_waiting(brokers.url("operations"), records)
            items = (await service.page(Filters())).items
            return items if len(items) >= number else None

        found = await eventually(all_of_them, within=60)
        assert found is not None
        assert len(found) == number
        return list(found)


async def empty(brokers: Brokers) -> None:
    """Purge all queues."""
    async with await aio_pika.connect(brokers.deployer_url) as connection, connection.channel() as channel:
        for queue in topology.queues():
            await (await channel.get_queue(queue.name)).purge()


def test_the_message_of_an_order_is_sent_by_the_order_service_alone() -> None:
    senders = [user for user, rights in RIGHTS.items() if OrderCreated.routing_key in rights.topics]
    assert senders == ["order"]
