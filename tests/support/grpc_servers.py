"""The gRPC server of the order service in this process, over a real MongoDB, and what its clients need."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import aio

from operations.stack.ports import PortClaims
from order_service import __main__ as order_service
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.generated.orders_pb2_grpc import OrderServiceStub
from order_service.settings import OrderSettings
from shared.access.limits import RequestLimits, parse_limit
from shared.admission import Admission, OtherServer
from shared.audit_log import AuditLog
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.contracts import Message
from shared.database import Database
from shared.failpoints import nothing_fails
from shared.schema import prepare
from shared.service import Connections, Parts
from tests.support.access import ADMIN_KEY, key_authenticator


@dataclass
class GrpcService:
    """A running server, and the states that its service may be in."""

    port: int
    parts: Parts
    server: OtherServer
    channel: aio.Channel
    reason_to_refuse: str | None = None
    down: dict[str, str] = field(default_factory=dict)

    @property
    def orders(self) -> Any:
        return OrderServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def answer(self, message: Message) -> None:
        """Let a participant answer; nothing listens to what follows."""
        await self.parts.handlers[type(message)]([message])


@asynccontextmanager
async def run_grpc_service(database: Database, **settings: Any) -> AsyncIterator[GrpcService]:
    """Serve the orders of this database."""
    ports = PortClaims()
    port = settings.pop("grpc_port", None) or ports.claim_free()
    authenticator = settings.pop("authenticator", None) or key_authenticator()
    rate, failures = (parse_limit(given) if (given := settings.pop(n, None)) else None for n in ("rate", "failures"))
    configured = OrderSettings(grpc_port=port, **{"max_settle_seconds": None, **settings})
    parts = order_service.assemble(
        configured, Connections(database, Publisher(MemoryBus(MemoryBroker())), nothing_fails)
    )
    await prepare(database, parts.collections)
    assert parts.other_server is not None

    async def unready() -> dict[str, str]:
        return service.down

    admission = Admission(
        authenticator,
        RequestLimits(rate, failures),
        AuditLog(database),
        lambda: service.reason_to_refuse,
        unready,
    )
    server = parts.other_server(admission)
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            service = GrpcService(port, parts, server, channel)
            yield service
    finally:
        await server.stop(1)
        ports.release()


def new_order(**changes: Any) -> pb.CreateOrderRequest:
    """One unit of p1 for 10."""
    values: dict[str, Any] = {
        "user_id": "u1",
        "items": [{"product_id": "p1", "quantity": 1, "price": "10"}],
        "total_amount": "10",
    }
    return pb.CreateOrderRequest(**(values | changes))


def metadata(key: str | None = ADMIN_KEY, **more: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this API key; `idempotency_key` becomes idempotency-key."""
    bearer = {"authorization": f"Bearer {key}"} if key is not None else {}
    return tuple((bearer | {name.replace("_", "-"): value for name, value in more.items()}).items())


@dataclass(frozen=True)
class Refused:
    """How a call ended."""

    code: grpc.StatusCode
    message: str
    violations: dict[str, str]
    reason: str | None
    about: dict[str, str]
    retry_seconds: int | None


async def refusal(call: Awaitable[Any]) -> Refused:
    """Return the status of a call, which must not be answered."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        return refused(error)
    raise AssertionError(f"it was answered: {answer}")


def refused(error: aio.AioRpcError) -> Refused:
    """Return an error with its details unpacked."""
    found: dict[type[Any], Any] = {}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                for kind in (BadRequest, ErrorInfo, RetryInfo):
                    if detail.Is(kind.DESCRIPTOR):
                        detail.Unpack(unpacked := kind())
                        found[kind] = unpacked
    bad, info, retry = found.get(BadRequest), found.get(ErrorInfo), found.get(RetryInfo)
    return Refused(
        error.code(),
        error.details() or "",
        {violation.field: violation.description for violation in bad.field_violations} if bad else {},
        info.reason if info else None,
        dict(info.metadata) if info else {},
        retry.retry_delay.seconds if retry else None,
    )
