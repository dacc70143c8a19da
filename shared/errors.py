"""The errors that decide what becomes of a message or a request.

    OrdersagaError
    ├── TransientError               comes again by itself: the consumer waits and repeats, HTTP answers 503
    │   ├── DatabaseUnavailableError     MongoDB did not answer, or has no primary
    │   └── BusUnavailableError          RabbitMQ did not answer, or did not confirm in time
    ├── PoisonError                  never succeeds: the message is dead-lettered at once, with this reason
    ├── UnknownTypeError             a newer release may know it: retried on the slowest level, then dead-lettered
    └── StartError                   the process cannot start: one line on stderr, exit status 1

A refusal (no stock, a declined card) is none of these: it is an answer, a message like any other.
Any other exception is a fault: the message is retried after 1 s, 5 s, 30 s and 2 min, then dead-lettered.
"""

from typing import ClassVar


class OrdersagaError(Exception):
    """Root of the project's own errors."""


class TransientError(OrdersagaError):
    """A server is away or too slow; the same call will succeed later.

    Clients read `for_clients` where a class has one: its text may be a driver's, with addresses and time-outs.
    """

    for_clients: ClassVar[str | None] = None


class DatabaseUnavailableError(TransientError):
    """MongoDB did not answer in time, refused the connection or has no primary."""

    for_clients = "The database (MongoDB) does not answer at the moment, try again"


class BusUnavailableError(TransientError):
    """RabbitMQ is not connected, or did not confirm a publication in time."""

    for_clients = "The message broker (RabbitMQ) does not answer at the moment, try again"


class PoisonError(OrdersagaError):
    """A message that can never be handled: not JSON, the wrong shape, an order that does not exist."""


class UnknownTypeError(OrdersagaError):
    """A message of a type that this release does not know: its sender may have been upgraded first."""


class StartError(OrdersagaError):
    """The process cannot start; the message is the one line that its operator reads."""
