"""The bus over RabbitMQ: plain aio-pika connections under our own supervision.

`RabbitBus` keeps one `Link` alive: a connection with its channels. If any part of a link fails, the whole link ends and
the supervisor opens a new one, on another node if there are several, so there are no partial failures to reason about.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog
from yarl import URL

from shared import topology
from shared.bus import Delivery, Envelope
from shared.bus.amqp.link import BrokerRefusedError, Link, Options, TopologyMode
from shared.bus.amqp.nodes import Address, Nodes
from shared.bus.backoff import Backoff
from shared.errors import BusUnavailableError, StartError
from shared.urls import hide_credentials, split_amqp_url

_STABLE_SECONDS = 5.0
"""A link that lived for less is reopened after a longer pause each time."""

log = structlog.get_logger()


class RabbitBus:
    """The `Bus` of production; `url` is amqp://user:password@host:port/vhost, or several of a cluster with commas.

    `prefetch` is the number of deliveries that the broker sends ahead of acknowledgements. `publish_timeout` (seconds)
    limits the wait for a confirm and for a connection. Every `check_every` seconds the bus asks the broker whether it
    still knows the consumer. With the mode "declare", it restores missing parts of the topology at least every
    `repair_every` seconds; with "check", it connects only once the topology is there, notices as often what is missing,
    and changes nothing on the broker; with "trust", it does neither, as a command that uses one queue. With partitions
    in the `topology_options`, an inbox that may have some is divided: the bus consumes them beside it, and shares them
    evenly with the other processes that do.
    """

    def __init__(
        self,
        url: str,
        *,
        prefetch: int = 300,
        publish_timeout: float = 10.0,
        check_every: float = 5.0,
        repair_every: float = 10.0,
        ladder: Sequence[topology.RetryDelay] = topology.RETRY_LADDER,
        name: str = "ordersaga",
        topology_mode: TopologyMode = "declare",
        topology_options: topology.TopologyOptions = topology.PLAIN,
    ) -> None:
        self._shown_url = hide_credentials(url)
        self._nodes = Nodes(url)
        self._options = Options(
            URL(split_amqp_url(url)[0]).user or "guest",  # as in the protocol's clients if the URL names none
            prefetch,
            publish_timeout,
            check_every,
            repair_every,
            tuple(ladder),
            name,
            topology_mode,
            topology_options,
        )
        self._queue: str | None = None
        self._link: Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._receiving = asyncio.Event()
        self._stopped_receiving = False
        self._intake: int | None = None
        self._topology_known = False
        self._closing: set[asyncio.Task[None]] = set()
        self._failures: dict[Address, str] = {}
        self._reason = "not started"

    @property
    def user(self) -> str:
        """The user of its connections."""
        return self._options.user

    @property
    def can_publish(self) -> bool:
        return self._link is not None and self._link.can_publish

    @property
    def unhealthy_reason(self) -> str | None:
        if self._supervisor is None or self._supervisor.done() or self._link is None:
            return f"RabbitMQ: {self._reason}"
        return self._link.unhealthy_reason

    async def start(self, queue: str | None) -> None:
        self._queue = queue
        self._supervisor = asyncio.create_task(self._supervise(), name="rabbitmq-supervisor")
        opened = asyncio.create_task(self._opened.wait())
        try:
            while not opened.done():
                done, _ = await asyncio.wait(
                    {self._supervisor, opened}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                if self._supervisor in done:
                    self._supervisor.result()
                if not done:
                    log.warning("waiting for RabbitMQ", address=self._shown_url, reason=self._reason)
        finally:
            opened.cancel()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        if self._link is None:
            raise BusUnavailableError(f"RabbitMQ: {self._reason}")
        if envelopes:
            await self._link.publish(envelopes)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self._stopped_receiving:
            if self._link is not None and self._link.deliveries and self._intake != 0:
                return self._link.take(limit)
            self._receiving.clear()
            await self._receiving.wait()
        return ()

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        if self._link is not None and self.still_owns(deliveries):
            self._link.acknowledge(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        if self._link is not None and self.still_owns(deliveries):
            self._link.requeue(deliveries)

    def still_owns(self, deliveries: Sequence[Delivery]) -> bool:
        return self._link is not None and bool(deliveries) and deliveries[-1].receipt.link is self._link

    async def limit_intake(self, most: int | None) -> None:
        self._intake = most
        if self._link is not None:
            await self._link.limit_intake(most)

    async def stop_receiving(self) -> None:
        self._stopped_receiving = True
        self._receiving.set()

    async def close(self) -> None:
        await self.stop_receiving()
        self._reason = "closed"
        if self._supervisor is not None:
            while not self._supervisor.done():  # again and again: aio-pika may swallow a cancellation while it connects
                self._supervisor.cancel()
                await asyncio.wait({self._supervisor}, timeout=0.5)
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _supervise(self) -> None:
        backoff = Backoff()
        while True:
            address = await self._nodes.next()
            try:
                self._link = await Link.open(
                    address,
                    self._options,
                    self._queue,
                    self._receiving.set,
                    topology_known=self._topology_known,
                    intake=self._intake,
                )
                await self._link.limit_intake(self._intake)  # which may have changed while it was opened
            except StartError as error:
                if not self._opened.is_set():
                    raise
                self._reason = str(error)
                log.error("RabbitMQ refuses the topology", address=self._shown_url, reason=self._reason)  # noqa: TRY400
            except BusUnavailableError as error:
                self._note_failure(error, address)
            except Exception as error:
                # If this task ended, the bus would never reconnect.
                if not self._opened.is_set():
                    raise
                self._reason = repr(error)
                log.exception("RabbitMQ connection failed unexpectedly", address=self._shown_url)
            else:
                if await self._lived(self._link, address) > _STABLE_SECONDS:
                    self._nodes.start_over()
                    backoff.reset()
            if self._nodes.is_round_over:
                await asyncio.sleep(backoff.next())

    def _note_failure(self, error: BusUnavailableError, address: Address) -> None:
        if isinstance(error, BrokerRefusedError) and not self._opened.is_set():
            raise StartError(f"RabbitMQ at {self._shown_url} refuses the login: {error}") from error
        reason = str(error) if address.is_only else f"{address}: {error}"
        if self._failures.get(address) != reason and self._opened.is_set():
            log.warning("RabbitMQ cannot be reached", address=self._shown_url, reason=reason)
        self._failures[address] = reason
        self._reason = "; ".join(self._failures.values())

    async def _lived(self, link: Link, address: Address) -> float:
        """Wait until the link is lost; return its lifetime in seconds."""
        log.info("RabbitMQ connected", address=str(address), queue=self._queue)
        since = time.monotonic()
        self._opened.set()
        self._receiving.set()  # the first deliveries came before the link was stored
        await asyncio.wait({link.lost})
        self._reason = link.lost.result()
        self._topology_known = not link.missed_something
        self._link = None
        self._failures.clear()
        log.warning("RabbitMQ connection lost", address=str(address), reason=self._reason)
        self._close_later(link)
        return time.monotonic() - since

    def _close_later(self, link: Link) -> None:
        """Close a lost link without waiting: a silent node would hold up the next one for seconds."""
        closing = asyncio.create_task(link.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
