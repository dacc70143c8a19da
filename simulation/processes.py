"""The processes of a world: each service twice, as its own composition root assembles it, started again after a crash.

The routes of a service are made once and serve all lives of its processes: making them takes longer than a whole run.
So each composition root gets a stand-in for its `create_router`, which keeps the parts that the routes would use; and
the routes use stand-ins that look these parts up in the life whose request they serve. The provider's client is
replaced in the same way. Everything else is the real thing.
"""

import asyncio
import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from fastapi import APIRouter, FastAPI

import inventory_service.__main__ as inventory
import order_service.__main__ as order
import payment_service.__main__ as payment
import provisioning_service.__main__ as provisioning
from inventory_service.settings import InventorySettings
from order_service.settings import OrderSettings
from payment_service import reconciler
from payment_service.funds import api as funds_api
from payment_service.gateways.factory import open_gateway
from payment_service.ledger import orphaned_sessions, transactions
from payment_service.settings import PaymentSettings
from provisioning_service import outbox as provisioning_outbox
from provisioning_service import scheduler
from provisioning_service.settings import ProvisioningSettings
from shared import database
from shared.access.authenticator import Authenticator
from shared.bus import Handler, Handlers
from shared.bus.consumer import Consumer
from shared.bus.publisher import Publisher
from shared.clock import Clock
from shared.contracts import Message
from shared.database import Database
from shared.failpoints import SimulatedCrashError
from shared.http import add_routes, create_app
from shared.pausing import watch
from shared.pausing.records import PauseRecords
from shared.service import Connections, Parts
from shared.services import INVENTORY, ORDER, PAYMENT, PROVISIONING, Service
from simulation.broker import SimulatedBroker, SimulatedBus
from simulation.coverage import Met
from simulation.entropy import replace_until_exit
from simulation.faults import Injector, Reach
from simulation.gateway import FaultyGateway
from simulation.keys import KEYS
from simulation.loop import Life, never
from simulation.plan import Plan
from simulation.provider import ProviderSite, SimulatedProvider
from simulation.trace import Trace

SETTINGS: Mapping[str, Any] = {
    "max_settle_seconds": None,  # each look at orders in progress is a step, and a world has too few to refuse any
    "saga_timeout_seconds": 16,
    "failed_hold_seconds": 10,
    "republish_after_seconds": 2,
    "resend_after_seconds": 4,
    "sweep_interval_seconds": 3,
    "mark_flush_seconds": 1,
    "mark_sweep_seconds": 6,
    "hold_sweep_seconds": 3,
    "credentials_key": base64.urlsafe_b64encode(bytes(32)).decode(),
    "buy_retry_delays": "1,2",
    "status_retry_delays": "1,2",
    "buy_timeout_seconds": 4,
    "status_timeout_seconds": 3,
    "stock_timeout_seconds": 3,
    "lock_wait_seconds": 6,
    "lock_lease_seconds": 8,
    "payment_failure_rate": 0.1,
    "database_timeout_seconds": 3,
    "smartvps_url": "https://provider.invalid",
    "smartvps_username": "simulated",
    "smartvps_password": "simulated",
}
"""Time limits in the proportions of the real ones, and short enough that a world of orders ends in a few minutes."""

_POLLS = (
    (scheduler, "POLL_SECONDS", 4.0),
    (provisioning_outbox, "SWEEP_SECONDS", 6.0),
    (reconciler, "PAUSE_SECONDS", 3.0),
    (orphaned_sessions, "PAUSE_SECONDS", 1.8),
    (watch, "LOOK_SECONDS", 4.5),
)
"""Pauses between looks for work that are no settings. Most looks find nothing, and would take most of a run's time."""

RESTART_SECONDS = 0.8
"""The time from a crash to the next life."""


@dataclass(frozen=True)
class _Root:
    """A service, and its composition root."""

    service: Service
    assemble: Callable[[Any, Connections], Parts]
    settings: type[Any]
    routes: tuple[tuple[Any, str], ...]
    """The functions that make its routes: the module that calls each, and its name there."""


_ROOTS = (
    _Root(ORDER, order.assemble, OrderSettings, ((order, "create_router"),)),
    _Root(
        INVENTORY,
        inventory.assemble,
        InventorySettings,
        ((inventory, "create_router"), (inventory, "create_slots_router"), (inventory, "create_holds_router")),
    ),
    _Root(PAYMENT, payment.assemble, PaymentSettings, ((payment, "create_router"), (funds_api, "create_router"))),
    _Root(PROVISIONING, provisioning.assemble, ProvisioningSettings, ((provisioning, "create_router"),)),
)
ROOTS: Mapping[str, _Root] = {root.service.name: root for root in _ROOTS}

_ASKED = (ORDER.name, INVENTORY.name, PAYMENT.name)
"""The services that clients and operators ask; what provisioning answers would only show what the records say."""

RouteParts = dict[str, tuple[Any, ...]]
_SERVING: ContextVar[RouteParts] = ContextVar("_SERVING")
"""The parts of the routes of the life that runs, by the name of the function that makes the routes."""


class _PartOfLife:
    """Stands for an argument of a function that makes routes: that of the life whose request is served."""

    def __init__(self, maker: str, place: int) -> None:
        self._maker = maker
        self._place = place

    def __getattr__(self, name: str) -> Any:
        return getattr(_SERVING.get()[self._maker][self._place], name)


def _keeping(kept: RouteParts, maker: str) -> Callable[..., APIRouter]:
    def create_router(*parts: Any) -> APIRouter:
        kept[maker] = parts
        return APIRouter()

    return create_router


@cache
def applications() -> dict[str, FastAPI]:
    """Make the routes of the services that are asked, once for all worlds: they serve the life that they run in."""
    return {name: _application(ROOTS[name]) for name in _ASKED}


def _application(root: _Root) -> FastAPI:
    async def ready() -> dict[str, str]:
        return {}

    app = create_app(root.service.name, "", ready, authenticator=Authenticator(KEYS))
    for module, name in root.routes:
        maker = f"{module.__name__}.{name}"
        arguments = [
            InventorySettings.model_fields["max_holds_per_user"].default
            if each == "most_per_user"
            else _PartOfLife(maker, place)
            for place, each in enumerate(_required(getattr(module, name)))
        ]
        add_routes(app.router, getattr(module, name)(*arguments))
    return app


def _required(function: Callable[..., Any]) -> list[str]:
    code = function.__code__
    names: Sequence[str] = code.co_varnames[: code.co_argcount]
    return list(names[: len(names) - len(function.__defaults__ or ())])


class SimulatedProcess:
    """One process of a service; each crash ends a life, and another begins a little later."""

    def __init__(
        self,
        name: str,
        stored: Database,
        broker: SimulatedBroker,
        site: ProviderSite,
        injector: Injector,
        trace: Trace,
        met: Met,
        reach: Reach,
        of: Plan,
    ) -> None:
        self.name = name
        self.root = ROOTS[name.partition("-")[0]]
        self.crashes = 0
        self.life: Life | None = None
        self.defects: list[str] = []
        self._stored = stored
        self._broker = broker
        self._site = site
        self._injector = injector
        self._trace = trace
        self._met = met
        self._settings = _settings(self.root.service.name, of.card_capture)
        self._reach = reach
        self._batch_limit = of.batch_limit
        self._breaker_batches = of.breaker_batches
        self._bus: SimulatedBus | None = None
        self._ahead = 0.0

    def start(self) -> None:
        """Begin a life."""
        life = self.life = Life(self.name)
        life.clock_offset = self._ahead
        life.start(self._live(life))

    def crash(self) -> None:
        """End the life at once; nothing of it runs any more."""
        life = self.life
        if life is None:
            return
        life.ended = True
        self.life = None
        self.crashes += 1
        if self._bus is not None:
            self._broker.forget(self._bus)
        asyncio.get_running_loop().call_later(RESTART_SECONDS, self.start, context=Context())

    def jump(self, seconds: float) -> None:
        """Put the process's clock so many seconds ahead of the true time; a machine's clock outlives its processes."""
        self._ahead = seconds
        if self.life is not None:
            self.life.clock_offset = seconds

    async def _live(self, life: Life) -> None:
        try:
            await self._serve(life)
        except SimulatedCrashError:
            await never()
        except Exception as error:  # noqa: BLE001 - a process that ends by itself is a finding
            self.defects.append(f"{self.name} ended by itself: {error!r}")

    async def _serve(self, life: Life) -> None:
        bus = self._bus = SimulatedBus(self._broker, life, self._reach)
        publisher = Publisher(bus)
        failpoint = partial(self._failpoint, life)
        parts = self._assemble(Connections(self._stored, publisher, failpoint))
        service = self.root.service
        consumer = Consumer(
            bus,
            service.inbox,
            self._observing(parts.handlers),
            batch_limit=self._batch_limit,
            failpoint=failpoint,
            translate_error=database.translate_error,
            breaker_batches=self._breaker_batches,
        )
        pauses = watch.PauseWatch(service, PauseRecords(self._stored), consumer.set_paused, publisher)
        async with asyncio.TaskGroup() as group:
            for work in (*parts.background, pauses.run):
                group.create_task(_forever(work))
            await pauses.known.wait()
            await bus.start(service.inbox)
            await consumer.run()
        raise RuntimeError("the consumer has ended")

    def _assemble(self, connections: Connections) -> Parts:
        kept: RouteParts = {}
        provider = SimulatedProvider(self._site, self._settings_of("buy_timeout_seconds"))
        with ExitStack() as replaced:
            for module, name in self.root.routes:
                replace_until_exit(replaced, module, name, _keeping(kept, f"{module.__name__}.{name}"))
            replace_until_exit(replaced, provisioning, "open_provider", lambda _settings: provider)
            replace_until_exit(replaced, payment, "open_gateway", self._open_gateway)
            parts = self.root.assemble(self._settings, connections)
        if self.life is not None:
            self.life.context.run(_SERVING.set, kept)
            self.life.serves = True
        return parts

    def _open_gateway(self, settings: PaymentSettings, stored: Database, clock: Clock) -> FaultyGateway:
        return FaultyGateway(open_gateway(settings, stored, clock), self._injector)

    def _settings_of(self, name: str) -> float:
        return float(getattr(self._settings, name, 0.0))

    def _failpoint(self, life: Life, point: str) -> None:
        self._met.failpoints.add(point)
        if not life.ended:
            self._reach(life, f"at {point}")
            if life.ended:
                self._met.crashed_at.add(point)
        if life.ended:
            raise SimulatedCrashError(point)

    def _observing(self, handlers: Handlers) -> Handlers:
        """Note what each handler does; one handler stays one, whatever the number of its types."""
        watched: dict[Handler, Handler] = {}
        return {kind: watched.setdefault(each, self._watched(each)) for kind, each in handlers.items()}

    def _watched(self, handler: Handler) -> Handler:
        service = self.root.service.name

        async def handle(messages: Sequence[Any]) -> Sequence[Message]:
            try:
                results = await handler(messages)
            except Exception as error:
                self._met.errors.update((message.routing_key, type(error).__name__) for message in messages)
                raise
            if service != ORDER.name:
                self._met.note_answers(service, messages, results)
            return results

        return handle


@contextmanager
def patched() -> Iterator[None]:
    """Let processes look for work less often than in production, and keep nothing of this world for the next."""
    with ExitStack() as replaced:
        replace_until_exit(replaced, transactions, "_ending", set())
        for module, name, seconds in _POLLS:
            replace_until_exit(replaced, module, name, seconds)
        yield


async def _forever(work: Callable[[], Any]) -> None:
    await work()
    raise RuntimeError(f"{getattr(work, '__qualname__', work)} has ended")


@cache
def _settings(service: str, card_capture: str) -> Any:
    settings = ROOTS[service].settings
    given = {**SETTINGS, "card_capture": card_capture}
    return settings(**{name: value for name, value in given.items() if name in settings.model_fields})
