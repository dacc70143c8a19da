"""One connection to RabbitMQ with a complete topology, a channel to publish and a channel to consume.

A link is opened, used and lost as a whole; it is never repaired (see RabbitBus). Problems of the broker do not end the
link while the connection lives, because each new connection counts as one more delivery of its unacknowledged messages:

    problem                                      reaction of the link
    ───────────────────────────────────────────  ────────────────────────────────────────────────────────────────────
    an alarm, so the broker blocks publishing    does not publish, keeps its deliveries, asks nothing, then resumes
    a publication is refused, or not confirmed   publishes on a new channel: the old one may ask a leader that is gone,
    in time                                      and would ask it until it is back. What else waits on the old one is
                                                 still confirmed there after a refusal, and fails after a time-out
    the same in a cluster, and a confirm takes   publishes what waits on a new channel, too: what was on its way to a
    much longer than usual                       leader that died is lost
    a queue of its consumers has no leader       keeps its consumer, which gets messages again from the next leader
    an exchange, queue or binding is missing     declares it again at its next check, if it declares at all; if it only
                                                 checks, is unhealthy until the exchange or queue is back
    one of them exists with other arguments      if it declares, is unhealthy until they are as declared
    no answer to a check of the topology         is unhealthy, and checks again

RabbitMQ blocks a connection that publishes during an alarm: it reads nothing from it, neither acknowledgements nor
questions nor heartbeats. But it still sends heartbeats, so their absence shows that a broker is gone.
"""

import asyncio
import itertools
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq.abc import AbstractChannel as UnderlyingChannel
from aiormq.connection import parse_heartbeat
from yarl import URL

from shared import tls, topology
from shared.bus import Delivery, Envelope
from shared.bus.amqp.confirms import ConfirmTimes, MessageRefusedError, Pending, UnroutableError
from shared.bus.amqp.connecting import connect
from shared.bus.amqp.frames import Deliver, Properties, acknowledgement, publication, refusal, refusal_of_one
from shared.bus.amqp.nodes import Address
from shared.bus.amqp.publications import Publications
from shared.bus.amqp.subscriptions import Subscriptions
from shared.bus.amqp.wire import Tap, TappedTransport
from shared.bus.declaring import (
    PAUSE_BEFORE_DECLARING_AGAIN,
    EventStreamDiffersError,
    declare_event_stream,
    declare_topology,
    describe_missing,
    find_missing,
    queue_exists,
    repair_topology,
)
from shared.bus.partitions import try_partition, unbind_surplus
from shared.errors import BusUnavailableError, StartError
from shared.outage_words import with_detail

TopologyMode = Literal["declare", "check", "trust"]
"""What a connection does about the topology: declare it, only check that it is there, or nothing at all."""

_LINK_ERRORS = CONNECTION_EXCEPTIONS
"""The errors of aio-pika for a missing or lost connection or channel; TimeoutError is an OSError."""

_NOT_LET_IN = ("ACCESS_REFUSED", "NOT_ALLOWED")

_CUT = re.compile(r"connection (reset|unexpectedly closed)", re.IGNORECASE)
_TLS_HINT = " (a broker that requires TLS does this too: it needs amqps:// in ORDERSAGA_AMQP_URL)"

_HEARTBEAT_SECONDS = 10
_CLUSTER_HEARTBEAT_SECONDS = 4
"""Where there are several nodes: they send heartbeats twice as often, and expect them within twice that time.

RabbitMQ's guide to heartbeats warns that values below 5 s end sound connections when a network is congested. That costs
a reconnection here, while a silent node holds up all orders of this process.
"""
_CLUSTER_TIMEOUT_SECONDS = 5.0
"""The longest wait for an answer where there are several nodes."""
SILENT_SECONDS = 4.0
"""The time without a byte after which a node counts as gone, where there are others; see Link._longest_silence."""
_SILENCE_CHECKED_EVERY = 0.5
_CLOSE_SECONDS = 3.0
_JITTER = 0.25
"""The random part of the pause between two checks, so the services do not all ask at once."""
_SILENT_ROUNDS = 3
"""The number of time-outs that a check waits for its answer: a busy broker answers questions later than confirms."""

_RENEWAL_PAUSE = 1.0
"""The time between two channels to publish on: a queue that is full or away refuses each publication for a while."""

_EARLY_PAUSE = 10.0
"""The time between two channels that are given up for overdue confirms before the time-out."""

_SETTLING_SECONDS = 1.0
"""The time between the first message of a partition and the question whether others are to have it."""

_LONE_CHECKS = 6
"""The number of checks for which a process keeps a partition that it left and that no other process took."""

_PROBE_SECONDS = 2.0
_PROBE = Envelope(b"", topology.PROBE_EXCHANGE, "ordersaga.probe", "probe", "", "probe", mandatory=False)
"""Reaches no queue: the broker confirms and drops it.

RabbitMQ blocks and notifies only connections that publish. Without the probe, a service without orders would look ready
during an alarm.
"""

_log = structlog.get_logger(__name__)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a link; `timeout`, `check_every` and `repair_every` are in seconds."""

    user: str
    prefetch: int
    timeout: float
    check_every: float
    repair_every: float
    ladder: tuple[topology.RetryDelay, ...]
    name: str
    mode: TopologyMode
    topology_options: topology.TopologyOptions


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of a delivery: a tag that is valid on its link only."""

    link: "Link"
    tag: int


class BrokerRefusedError(BusUnavailableError):
    """The broker refuses our user, password or virtual host."""


class Link(Tap):
    """A connection with its channels; `lost` is done, with the reason, when any part of it fails."""

    def __init__(
        self,
        address: Address,
        options: Options,
        queue: str | None,
        on_delivery: Callable[[], None],
        intake: int | None = None,
    ) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.missed_something = False
        """Whether the broker has closed a channel because a queue or an exchange does not exist."""
        self._address = address
        self._options = options
        self._queue = queue or ""
        self._queues = (queue, *topology.partitions_of(queue, options.topology_options.partitions)) if queue else ()
        self._on_delivery = on_delivery
        self._transport = TappedTransport(self._block_changed, address.ip)
        self._connection = aio_pika.Connection(
            _with_heartbeat(address),
            ssl_context=tls.amqp_context(address.url),
            client_properties={"connection_name": options.name},
        )
        self._connection.kwargs["transport_factory"] = self._transport
        self._heartbeat = parse_heartbeat(self._connection.url.query["heartbeat"])
        self._channels: list[AbstractChannel] = []  # aio-pika closes channels without references
        self._publications: Publications
        self._former_publications: set[Publications] = set()
        self._confirm_times = ConfirmTimes()
        self._gave_up_early_at = float("-inf")
        self._consuming: UnderlyingChannel
        self._subscriptions: Subscriptions
        self._intake = intake
        self._changing_consumers = asyncio.Lock()
        self._user = options.user
        self._renewal: asyncio.Task[None] | None = None
        self._renewed_at = float("-inf")
        self._blocked: str | None = None
        self._unblocked_at = float("-inf")
        self._unconfirmed: str | None = None
        self._unsound: str | None = None
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def can_publish(self) -> bool:
        """Whether the broker confirms what is published, by the last probe."""
        return self._blocked is None and self._unconfirmed is None

    @property
    def unhealthy_reason(self) -> str | None:
        """The problem, in a few words; None while the broker accepts publications and the topology is complete."""
        return self._blocked or self._unconfirmed or self._unsound

    @property
    def _timeout(self) -> float:
        """The time for an answer, in seconds: shorter where there are other nodes to ask."""
        return self._options.timeout if self._address.is_only else min(self._options.timeout, _CLUSTER_TIMEOUT_SECONDS)

    @classmethod
    async def open(
        cls,
        address: Address,
        options: Options,
        queue: str | None,
        on_delivery: Callable[[], None],
        *,
        topology_known: bool = False,
        intake: int | None = None,
    ) -> Self:
        """Connect, see to the topology, and consume from `queue` if there is one, as `Bus.limit_intake` says.

        With `topology_known`, an earlier link has seen to it, and this one is used first and verifies it later: while a
        node is gone, to declare a binding that exists takes as long as the others wait for that node.
        Raises StartError if the topology contradicts what the broker has or may not be declared, BrokerRefusedError if
        the broker rejects the login or the virtual host, BusUnavailableError if it cannot be reached or if a part of
        the topology is missing that this link does not declare.
        """
        link = cls(address, options, queue, on_delivery, intake)
        within = link._timeout if topology_known else options.timeout
        try:
            async with asyncio.timeout(within):
                await link._open(topology_known)
        except _LINK_ERRORS as error:
            await link.close()
            raise link._not_open(error, within) from error
        except BaseException:
            await link.close()
            raise
        return link

    async def close(self) -> None:
        """Close the connection; pending publications fail with BusUnavailableError."""
        self._lose("closed")
        for watch in [*self._watches]:
            watch.cancel()
        with suppress(*_LINK_ERRORS):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._connection.close()

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish all envelopes and wait for their confirms, as `Bus.publish` promises.

        Nothing is written to a blocked connection: it would pile up here, once more at every attempt.
        """
        if self._blocked is not None:
            raise BusUnavailableError(self._blocked)
        try:
            await self._publish(envelopes)
        except UnroutableError:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._verify_topology()
            raise

    async def _publish(self, envelopes: Sequence[Envelope]) -> None:
        """Publish all envelopes; in a cluster, once more on another channel if the confirms of the first are overdue.

        What was on its way to the leader of a queue when its node died is lost, and the channel holds back everything
        that follows it to that queue: RabbitMQ 3.10 sends it again to the next leader only after 10 s.
        """
        first, overdue_after = self._publications, self._confirm_times.overdue_after
        if overdue_after < self._timeout and self._may_give_up_early():
            try:
                return await self._publish_on(first, envelopes, overdue_after)
            except (MessageRefusedError, UnroutableError):
                raise
            except BusUnavailableError:
                self._gave_up_early_at = time.monotonic()
                if self._renewal is not None:
                    await asyncio.wait({self._renewal})
                if self.lost.done() or first is self._publications:
                    raise
        return await self._publish_on(self._publications, envelopes, self._timeout)

    def _may_give_up_early(self) -> bool:
        """Return whether a channel with overdue confirms may be given up, which ends the wait of all who use it.

        Not soon again: where confirms have become slow, those on the next channel must have the time to arrive, and to
        tell how long they take now.
        """
        return not self._address.is_only and time.monotonic() - self._gave_up_early_at > _EARLY_PAUSE

    async def _publish_on(self, publications: Publications, envelopes: Sequence[Envelope], patience: float) -> None:
        now = int(time.time())
        frames = [
            _frames(envelope, self._user, publications.number, now, publications.max_frame) for envelope in envelopes
        ]
        pending = Pending([envelope.message_id for envelope in envelopes])
        try:
            await publications.publish(frames, pending, patience)
        except TimeoutError as error:
            self._renew_publishing(publications, patience=0)
            waited = f"{patience:g} s for {pending.undecided} of {len(envelopes)} confirms"
            raise BusUnavailableError(self._blocked or f"RabbitMQ did not answer in {waited}") from error
        except MessageRefusedError:
            self._renew_publishing(publications, patience=self._timeout)
            raise

    def take(self, limit: int) -> list[Delivery]:
        """Return the deliveries that have arrived, at most `limit`."""
        return [self.deliveries.popleft() for _ in range(min(limit, len(self.deliveries)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge all deliveries up to the last of these."""
        self._transport.write(acknowledgement(self._consuming.number, deliveries[-1].receipt.tag))

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Return all deliveries up to the last of these to the broker."""
        self._transport.write(refusal(self._consuming.number, deliveries[-1].receipt.tag))

    async def limit_intake(self, most: int | None) -> None:
        """Consume with this prefetch from now on, see `Bus.limit_intake`; the link is lost if the broker refuses it."""
        async with self._changing_consumers:
            if most == self._intake or not self._queue:
                return
            self._intake = most
            try:
                await self._answered(self._subscriptions.cancel(), _SILENT_ROUNDS * self._timeout)
                self._give_back()
                await self._answered(self._subscriptions.begin(most), _SILENT_ROUNDS * self._timeout)
            except _LINK_ERRORS as error:
                self._lose(f"the consumer could not be changed: {error!r}")

    def _give_back(self) -> None:
        """Return the deliveries that were not taken, each by itself: an earlier batch may still be in hand."""
        tags = [delivery.receipt.tag for delivery in self.deliveries]
        self.deliveries.clear()
        if tags:
            self._transport.write(b"".join(refusal_of_one(self._consuming.number, tag) for tag in tags))

    def delivered(self, method: Deliver, properties: Properties, body: bytes) -> None:
        self._subscriptions.delivered(method.consumer)
        self.deliveries.append(
            Delivery(
                body=body,
                queue=self._queue,
                exchange=method.exchange,
                routing_key=method.routing_key,
                type=properties.type,
                correlation_id=properties.correlation_id,
                message_id=properties.message_id,
                redelivered=method.redelivered,
                headers=properties.headers,
                receipt=Receipt(self, method.tag),
                user_id=properties.user_id,
            )
        )
        self._on_delivery()

    def _not_open(self, error: BaseException, within: float) -> BusUnavailableError:
        if self._transport.close_reason is not None:
            refused = self._transport.close_reason.startswith(_NOT_LET_IN)
            return (BrokerRefusedError if refused else BusUnavailableError)(self._transport.close_reason)
        if isinstance(error, TimeoutError):
            return BusUnavailableError(f"no answer within {within:g} s")
        if (reason := tls.plain_reason(str(error))) != str(error):
            return BusUnavailableError(reason)
        hint = _TLS_HINT if self._connection.url.scheme == "amqp" and _CUT.search(str(error)) else ""
        return BusUnavailableError(f"{with_detail(error)}{hint}")

    async def _open(self, topology_known: bool) -> None:
        await self._connect()
        self._connection.close_callbacks.add(self._closed)
        if not topology_known or not await self._has_queues():
            await self._prepare_topology()
        await self._open_publishing()
        self.lost.add_done_callback(self._fail_publications)
        if self._queue:
            channel = await self._open_channel(publisher_confirms=False)
            self._consuming = await channel.get_underlay_channel()
            self._transport.tap(self._consuming.number, self)
            self._consuming.on_consumer_cancel_callbacks.add(self._cancelled)
            self._subscriptions = Subscriptions(self._consuming, self._queues, self._options.prefetch, _unreached)
            await self._subscriptions.begin(self._intake)
            self._start("watch-consumers", self._watch_consumers())
        self._start("watch-publishing", self._watch_publishing())
        if not self._address.is_only:
            self._start("watch-silence", self._watch_silence())
        self._start("watch-topology", self._watch_topology())

    async def _connect(self) -> None:
        """Connect; raises BusUnavailableError soon if the node says nothing, and there are others."""
        seconds = self._address.connect_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._connection.connect()
        except TimeoutError as error:
            if limit.expired():
                raise BusUnavailableError(f"no answer within {seconds:g} s") from error
            raise

    async def _has_queues(self) -> bool:
        return all([await queue_exists(self._connection, queue) for queue in self._queues])

    async def _prepare_topology(self) -> None:
        """Declare the topology, or check that it is there, as the options say."""
        if self._options.mode == "declare":
            await declare_topology(self._connection, self._options.ladder, self._options.topology_options)
            await unbind_surplus(self._connection, self._options.topology_options.partitions)
            await self._declare_events()
        elif self._options.mode == "check" and (
            missing := await find_missing(self._connection, self._options.ladder, self._options.topology_options)
        ):
            raise BusUnavailableError(describe_missing(missing))

    async def _declare_events(self) -> None:
        """Declare the stream of events; a stream with another retention is used as it is."""
        try:
            await declare_event_stream(self._connection, self._options.topology_options.events_retention)
        except EventStreamDiffersError as error:
            _log.warning("the stream of events stays as it is", reason=str(error))

    async def _open_channel(self, *, publisher_confirms: bool) -> AbstractChannel:
        channel = await self._connection.channel(self._free_number(), publisher_confirms=publisher_confirms)
        channel.close_callbacks.add(self._closed)
        self._channels.append(channel)
        return channel

    def _free_number(self) -> int:
        """Return the lowest free channel number; aio-pika counts upwards, and RabbitMQ allows 2,047."""
        transport = self._connection.transport
        taken = transport.connection.channels if transport else {}
        return next(number for number in itertools.count(1) if number not in taken)

    async def _open_publishing(self) -> None:
        channel = await self._open_channel(publisher_confirms=True)
        underlying = await channel.get_underlay_channel()
        self._publications = Publications(channel, underlying, self._transport, self._confirm_times)

    def _fail_publications(self, lost: asyncio.Future[str]) -> None:
        for publications in (self._publications, *self._former_publications):
            publications.lost(lost.result())

    def _renew_publishing(self, late: Publications, *, patience: float) -> None:
        """Begin to publish on another channel: this one may still ask a leader that is gone.

        RabbitMQ 3.10 looks up the leader of a queue once for each channel. If its node is already dead then, the
        channel refuses every message for that queue until the node is back.
        What waits on the old channel is confirmed within `patience` seconds, or fails.
        """
        if late is not self._publications or self._renewal is not None or self._blocked is not None or self.lost.done():
            return
        if time.monotonic() - self._renewed_at < _RENEWAL_PAUSE:
            return
        # Not by the publisher: it would wait twice as long, and aio-pika cancels whoever waits for a dead connection.
        self._renewal = self._start("renew-channel", self._replace_publications(late, patience))

    async def _replace_publications(self, late: Publications, patience: float) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._open_publishing()
        except _LINK_ERRORS as error:  # a later publication tries again, if the connection lives
            _log.warning("no other channel to publish on", queue=self._queue or None, error=str(error))
        else:
            self._former_publications.add(late)
            self._start("end-channel", self._end_publications(late, patience))
        finally:
            self._renewed_at = time.monotonic()
            self._renewal = None

    async def _end_publications(self, late: Publications, patience: float) -> None:
        """Close a former channel once everything on it is decided, or `patience` seconds are over."""
        await late.finish(patience)
        late.lost("its channel is given up")
        self._former_publications.discard(late)
        late.channel.close_callbacks.discard(self._closed)
        await self._close_channel(late.channel)

    async def _close_channel(self, channel: AbstractChannel) -> None:
        """Close a channel that is no longer used; it may not answer."""
        self._channels.remove(channel)
        with suppress(*_LINK_ERRORS):
            async with asyncio.timeout(self._timeout):
                await channel.close()

    def _start(self, name: str, watch: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(watch, name=name)
        task.add_done_callback(self._watch_ended)
        self._watches.add(task)
        return task

    def _watch_ended(self, watch: asyncio.Task[None]) -> None:
        self._watches.discard(watch)
        if not watch.cancelled() and (error := watch.exception()) is not None:
            self._lose(f"{watch.get_name()} failed: {error!r}")

    async def _watch_consumers(self) -> None:
        """Ask the broker regularly for the consumers of our queues; end the link if it does not know one of ours.

        Share the partitions with the other processes, by how many consumers these have: soon when another came to us.
        """
        while not self.lost.done():
            if await self._subscriptions.has_become_active(self._options.check_every):
                await asyncio.sleep(min(_SETTLING_SECONDS, self._options.check_every))
            try:
                await self._check_consumers()
            except _LINK_ERRORS as error:
                self._lose(f"the queues could not be checked: {error!r}")

    async def _check_consumers(self) -> None:
        before = self._subscriptions.consumers
        within = _SILENT_ROUNDS * self._timeout
        levels = await self._answered(self._subscriptions.levels(), within)
        for queue, level in levels.items():
            if level.consumers == 0 and await self._is_forgotten(queue):
                if self._subscriptions.consumers == before:  # none has been cancelled meanwhile
                    self._lose("the broker no longer knows the consumer")
                return
        async with self._changing_consumers:
            if self._intake is None:
                processes = levels[self._queue].consumers if self._queue in levels else 1
                sharing = self._subscriptions.share(processes, _LONE_CHECKS * self._options.check_every)
                if left := await self._answered(sharing, within):
                    _log.info("partitions left to other processes", partitions=left)
            elif self._intake and self._subscriptions.is_idle:
                await self._answered(self._subscriptions.test_next(self._intake), within)

    async def _is_forgotten(self, queue: str) -> bool:
        """Return whether a second consumer of the queue is the only one.

        Without a leader, a queue has no consumers by its answer, and takes no second one: that proves nothing. The
        broker even ends the connection of the second one, which is therefore not ours.
        """
        with suppress(*_LINK_ERRORS):
            async with await connect(self._address.url, self._timeout) as connection, asyncio.timeout(self._timeout):
                channel = await (await connection.channel()).get_underlay_channel()
                if topology.is_partition(queue):
                    return (await try_partition(channel, queue)).has_no_other
                await channel.basic_qos(prefetch_count=1)
                await channel.basic_consume(queue, _unreached)
                answer = await channel.queue_declare(queue, passive=True)
                return answer.consumer_count == 1
        return False

    async def _watch_publishing(self) -> None:
        """Detect within seconds that the broker has blocked publishing or does not confirm."""
        while True:
            try:
                await self.publish([_PROBE])
            except BusUnavailableError as error:
                self._unconfirmed = str(error) if self._blocked is None else None
            else:
                self._unconfirmed = None
            await asyncio.sleep(_PROBE_SECONDS)

    async def _watch_silence(self) -> None:
        """End the link when the node has said nothing for a while, not even by heartbeats: there are other nodes."""
        while self._transport.silent_seconds < self._longest_silence():
            await asyncio.sleep(_SILENCE_CHECKED_EVERY)
            if self._transport.silent_seconds >= self._longest_silence():
                await asyncio.sleep(_SILENCE_CHECKED_EVERY)  # this process may have stood still, and reads it now
        self._lose(f"the node has said nothing for {self._longest_silence():g} s")

    def _longest_silence(self) -> float:
        """Return for how many seconds a sound node may say nothing: during an alarm it sends only heartbeats.

        It looks twice in the interval of the URL whether it has sent nothing since its last look, and sends one then.
        """
        if not self._heartbeat:  # turned off in the URL
            return SILENT_SECONDS if self._blocked is None else math.inf
        return max(SILENT_SECONDS, self._heartbeat)

    async def _watch_topology(self) -> None:
        """Restore missing parts of the topology regularly, or note that they are missing."""
        while True:
            await asyncio.sleep(self._options.repair_every * random.uniform(1 - _JITTER, 1))  # noqa: S311 - no secret
            await self._verify_topology()

    async def _verify_topology(self) -> None:
        """Restore missing parts of the topology if this link declares it; note any other problem with it."""
        if self._options.mode == "trust":
            return
        within = _SILENT_ROUNDS * self._timeout
        verify = repair_topology if self._options.mode == "declare" else find_missing
        try:
            question = verify(self._connection, self._options.ladder, self._options.topology_options)
            missing = await self._answered(question, within)
        except StartError as error:
            self._unsound = str(error)
        except TimeoutError:
            self._unsound = f"RabbitMQ did not answer in {within:g} s whether the topology is whole"
        except _LINK_ERRORS as error:
            self._unsound = f"RabbitMQ does not let the topology be verified: {error}"
        else:
            self._note_missing(missing)

    def _note_missing(self, missing: Sequence[str]) -> None:
        if self._options.mode == "declare":
            self._unsound = None
            if missing:
                _log.warning("topology repaired, parts of it had been deleted", declared=missing)
            return
        if missing and self._unsound is None:
            _log.error("parts of the topology are missing", missing=missing)
        self._unsound = f"RabbitMQ: {describe_missing(missing)}" if missing else None

    async def _answered(self, question: Coroutine[Any, Any, _Answer], within: float) -> _Answer:
        """Wait at most `within` seconds for the broker's answer, not counting alarms, when the broker reads nothing.

        Raises TimeoutError.
        """
        asking = asyncio.create_task(question)
        asking.add_done_callback(_retrieve_error)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=within)
                if not asking.done() and not self._was_blocked_within(within):
                    raise TimeoutError(f"no answer within {within:g} s")
            if asking.cancelled():  # by aio-pika; this task was not
                raise ConnectionError("the connection was closed")
            return asking.result()
        finally:
            asking.cancel()

    def _was_blocked_within(self, seconds: float) -> bool:
        return self._blocked is not None or time.monotonic() - self._unblocked_at < seconds

    def _block_changed(self, reason: str | None) -> None:
        if reason is None:
            self._unblocked_at = time.monotonic()
            _log.info("RabbitMQ accepts publications again", queue=self._queue or None)
        else:
            _log.warning("RabbitMQ has blocked publishing", queue=self._queue or None, reason=reason)
        self._blocked = None if reason is None else f"RabbitMQ has blocked publishing: {reason}"

    def _closed(self, _sender: object, error: BaseException | None) -> None:
        self.missed_something = self.missed_something or isinstance(error, ChannelNotFoundEntity)
        self._lose(self._transport.close_reason or str(error) or type(error).__name__)

    def _cancelled(self, _consumer: object) -> None:
        """End the link after a pause: before the next link declares the queue, all its consumers must be cancelled."""
        reason = "the broker cancelled the consumer"
        asyncio.get_running_loop().call_later(PAUSE_BEFORE_DECLARING_AGAIN, self._lose, reason)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task that is no longer awaited, so asyncio does not log it."""
    if not task.cancelled():
        task.exception()


async def _unreached(_message: object) -> None:
    """The consumer that aio-pika knows; it never gets a message, because the transport takes them."""


def _frames(envelope: Envelope, user: str, channel: int, now: int, max_frame: int) -> bytes:
    properties = Properties(envelope.type, envelope.correlation_id, envelope.message_id, envelope.headers, user)
    return publication(
        channel,
        envelope.exchange,
        envelope.routing_key,
        envelope.mandatory,
        properties,
        now,
        envelope.body,
        max_frame,
    )


def _with_heartbeat(address: Address) -> URL:
    parsed = URL(address.url)
    seconds = _HEARTBEAT_SECONDS if address.is_only else _CLUSTER_HEARTBEAT_SECONDS
    return parsed if "heartbeat" in parsed.query else parsed.update_query(heartbeat=seconds)
