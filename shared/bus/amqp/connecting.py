"""Plain connections to RabbitMQ, for checks and counts; services use `shared.bus.rabbitmq`."""

import asyncio
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from yarl import URL

from shared import tls
from shared.bus.amqp.nodes import Address, Nodes
from shared.bus.amqp.wire import OnBlocked, TappedTransport, ignore_blocking


async def connect(
    url: str,
    timeout: float | None = None,  # noqa: ASYNC109 - of the whole call
    on_blocked: OnBlocked = ignore_blocking,
) -> AbstractConnection:
    """Connect to the first node that answers, with our certificates if the URL is amqps; `timeout` is in seconds.

    Raises AMQPError, OSError or TimeoutError, of the last node that was tried, and StartError if a file of a
    certificate cannot be used.
    """
    nodes = Nodes(url)
    async with asyncio.timeout(timeout):
        while True:
            address = await nodes.next()
            try:
                return await _connect(address, on_blocked)
            except CONNECTION_EXCEPTIONS:
                if nodes.is_round_over:
                    raise


def broker_version(connection: AbstractConnection) -> str:
    """Return the version of RabbitMQ that the node of a connection told, such as `4.3.6`; empty if it told none."""
    transport: Any = connection.transport
    return str(transport.connection.server_properties.get("version", ""))


def user_of(connection: AbstractConnection) -> str | None:
    """Return the user with which a connection was opened."""
    opened: Any = connection
    return URL(opened.url).user


async def _connect(address: Address, on_blocked: OnBlocked) -> AbstractConnection:
    connection = aio_pika.Connection(URL(address.url), ssl_context=tls.amqp_context(address.url))
    connection.kwargs["transport_factory"] = TappedTransport(on_blocked, address.ip)
    try:
        async with asyncio.timeout(address.connect_seconds):
            await connection.connect()
    except BaseException:
        await connection.close()
        raise
    return connection
