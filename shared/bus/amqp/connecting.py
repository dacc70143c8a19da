"""Plain connections to RabbitMQ, for checks and counts; services use `shared.bus.rabbitmq`."""

import aio_pika
from aio_pika.abc import AbstractConnection

from shared import tls


async def connect(url: str, timeout: float | None = None) -> AbstractConnection:  # noqa: ASYNC109 - of the whole call
    """Connect, with our certificates if the URL is amqps; `timeout` is in seconds.

    Raises AMQPError, OSError or TimeoutError, and StartError if a file of a certificate cannot be used.
    """
    return await aio_pika.connect(url, ssl_context=tls.amqp_context(url), timeout=timeout)
