"""A RabbitMQ node with a user for each service, and everything that a service may and may not do on it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import AMQPError

from operations.stack.broker_users import BrokerUsers
from operations.stack.ports import PortClaims
from operations.stack.rabbitmq import Epmd, RabbitMQ, find_rabbitmq
from operations.stack.start import start
from shared import services
from shared.broker_rights import RIGHTS, sent_by
from shared.services import SERVICES, Service
from shared.topology import DEAD_LETTERS, EXCHANGE, INBOX_EXCHANGE, MAX_MESSAGE_BYTES, PROBE_EXCHANGE, retry_queues

Attempt = Callable[[AbstractChannel], Awaitable[object]]

REFUSED = ("ACCESS_REFUSED", "PRECONDITION_FAILED")


@contextlib.asynccontextmanager
async def guarded_rabbitmq(directory: Path, node: str, users: BrokerUsers | None) -> AsyncIterator[RabbitMQ]:
    """Run a node with its data in a directory, with the given users, or with RabbitMQ's guest alone."""
    installation = find_rabbitmq()
    async with contextlib.AsyncExitStack() as stack:
        ports = stack.enter_context(PortClaims()).claim_preferred(["amqp", "distribution", "epmd"])
        broker = RabbitMQ(installation, directory / "rabbitmq", node, ports, users=users)
        for program in (Epmd(installation, ports["epmd"]), broker):
            child = await start(program, directory / "logs", directory, within_seconds=120)
            stack.push_async_callback(child.end, program.grace_seconds)
        yield broker


def attempts_of(service: Service) -> tuple[dict[str, Attempt], dict[str, Attempt]]:
    """Return what the user of a service may do, and what it may not, by a description."""
    other = services.ORDER if service is services.PAYMENT else services.PAYMENT
    own_key, others_key = sent_by(service)[0].routing_key, sent_by(other)[0].routing_key
    # The longest level: a message there does not come back while a test lasts.
    retry, others_retry = retry_queues(service.inbox)[-1], retry_queues(other.inbox)[-1]
    may: dict[str, Attempt] = {
        "publish its own message": publishing(EXCHANGE, own_key),
        "publish a notice about a replay": publishing(EXCHANGE, "dead_letter.handled"),
        "publish as itself": publishing(EXCHANGE, own_key, user_id=service.user),
        "send a dead letter": publishing(DEAD_LETTERS, own_key),
        "send to its retry exchange": publishing(retry, own_key),
        "test whether the broker confirms": publishing(PROBE_EXCHANGE, "ordersaga.probe"),
        "consume its inbox": getting(service.inbox),
    }
    may_not: dict[str, Attempt] = {
        "publish another's message": publishing(EXCHANGE, others_key),
        "publish a message of no contract": publishing(EXCHANGE, "made.up"),
        "publish as another": publishing(EXCHANGE, own_key, user_id=other.user),
        "publish more than the limit": publishing(EXCHANGE, own_key, body=bytes(MAX_MESSAGE_BYTES + 1)),
        "send through the exchange of the retries": publishing(INBOX_EXCHANGE, other.inbox),
        "consume another's inbox": getting(other.inbox),
        "consume a retry queue": getting(retry),
        "declare a queue": lambda channel: channel.declare_queue("mine", durable=True),
        "declare an exchange": lambda channel: channel.declare_exchange("mine", "fanout", durable=True),
        "delete its inbox": lambda channel: channel.queue_delete(service.inbox),
        "delete the exchange": lambda channel: channel.exchange_delete(EXCHANGE),
        "purge another's inbox": purging(other.inbox),
        "bind its inbox": binding(service.inbox, others_key),
    }
    operating = {
        "send to another's inbox by its name": publishing("", other.inbox),
        "send to its inbox by its name": publishing("", service.inbox),
        "send to another's retry exchange": publishing(others_retry, own_key),
        "consume the dead letters": getting(DEAD_LETTERS),
    }
    if service is services.CONSOLE:  # replays, and the levels of all queues, which older brokers tell everybody
        counts = {f"count the messages of {queue}": counting(queue) for queue in (other.inbox, others_retry)}
        return may | operating | counts, may_not
    return may, may_not | operating


def publishing(exchange: str, routing_key: str, *, body: bytes = b"{}", user_id: str | None = None) -> Attempt:
    async def publish(channel: AbstractChannel) -> object:
        named = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        return await named.publish(aio_pika.Message(body, user_id=user_id), routing_key, mandatory=False)

    return publish


def getting(queue: str) -> Attempt:
    async def get(channel: AbstractChannel) -> object:
        return await (await channel.get_queue(queue, ensure=False)).get(fail=False)  # not acknowledged: it returns

    return get


def counting(queue: str) -> Attempt:
    return lambda channel: channel.declare_queue(queue, passive=True)


def purging(queue: str) -> Attempt:
    async def purge(channel: AbstractChannel) -> object:
        return await (await channel.get_queue(queue, ensure=False)).purge()

    return purge


def binding(queue: str, routing_key: str) -> Attempt:
    async def bind(channel: AbstractChannel) -> object:
        return await (await channel.get_queue(queue, ensure=False)).bind(EXCHANGE, routing_key)

    return bind


async def assert_least_rights(url_of: Callable[[str], str]) -> None:
    """Try with the user of each service what it may and what it may not do, on a broker with the topology.

    `url_of` returns the URL for a user. It leaves messages in queues: empty ones, which become dead letters.
    """
    wrong = []
    for service in SERVICES.values():
        async with await aio_pika.connect(url_of(service.user)) as connection:
            may, may_not = attempts_of(service)
            for expected, attempts in ((None, may), (REFUSED, may_not)):
                for name, attempt in attempts.items():
                    refusal = await _refusal(connection, attempt)
                    if (refusal is None) != (expected is None) or not (refusal or "").startswith(expected or ""):
                        wrong.append(f"{service.user}: {name}: {refusal or 'done'}")
    assert not wrong, "\n".join(wrong)


async def _refusal(connection: aio_pika.abc.AbstractConnection, attempt: Attempt) -> str | None:
    """Return the broker's reason for refusing an attempt, None if it was done."""
    channel = await connection.channel()  # the broker closes a channel on which something is refused
    try:
        await attempt(channel)
    except (AMQPError, aio_pika.exceptions.AMQPException) as error:
        return str(error)
    await channel.close()
    return None


def passwords_in(directory: Path) -> Mapping[str, str]:
    """Return the broker's passwords in a directory of secrets, by user."""
    return {user: (directory / f"rabbitmq-{user}").read_text().strip() for user in RIGHTS}
