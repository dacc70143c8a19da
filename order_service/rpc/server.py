"""The gRPC server: its limits, its TLS, health checks and reflection."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from order_service.rpc import MAX_CALLS
from order_service.rpc.calls import MESSAGE_SECONDS, Calls, Context, Method, message_of, noted_failure
from order_service.rpc.failures import CODES
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.methods import OrderMethods
from order_service.settings import OrderSettings
from shared.admission import Admission, Places
from shared.errors import StartError
from shared.http import MAX_BODY_BYTES, ProblemError
from shared.watched_files import WatchedFiles

SERVICE = pb.DESCRIPTOR.services_by_name["OrderService"]
HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""Two names of one protocol, whose messages are the same."""

MAX_STREAMS = 500
"""The most calls in progress on one connection; clients queue more than that."""
MAX_CHECKS = 10
"""The most health checks in progress on one connection. A client that does not take the answer keeps them open."""
MAX_WAITING_CHECKS = 100
"""The most health checks that have time to send their message."""
HURRIED_SECONDS = 0.2
"""The time that further ones have; clients send the message at once."""
MAX_REFLECTIONS = 20
REFLECTION_SECONDS = 30.0
MAX_METADATA_BYTES = 32 * 1024
"""Room for a token of 16 KiB, the longest that is accepted."""

_log = structlog.get_logger(__name__)


class GrpcServer:
    """Serves OrderService to callers that are admitted, and health and reflection to everybody."""

    def __init__(self, settings: OrderSettings, admission: Admission, methods: OrderMethods) -> None:
        self._settings = settings
        self._unready = admission.unready
        self._methods = methods
        self._calls = Calls(admission)
        self._reflections = Places()
        self._checks = Places()
        self._unanswered: Counter[str] = Counter()
        self._stopping = False
        self._server: aio.Server | None = None

    async def start(self) -> None:
        """Listen on the HTTP host and the port of the settings. Raises StartError if that is not possible."""
        # Above what clients may have in progress, so that strangers cannot keep callers out.
        most = 2 * MAX_CALLS + MAX_CHECKS * self._settings.max_connections
        self._server = server = aio.server(options=_options(self._settings), maximum_concurrent_rpcs=most)
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        host, port = self._settings.http_host, self._settings.grpc_port
        address, credentials = f"{f'[{host}]' if ':' in host else host}:{port}", _credentials(self._settings)
        try:
            if credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on ORDERSAGA_HTTP_HOST={host} ORDERSAGA_GRPC_PORT={port}: {error}"
            ) from None
        await server.start()
        _log.info("listening", protocol="grpc", host=host, port=port, tls=credentials is not None)

    async def stop(self, within: float) -> None:
        """Take no more calls, and give those in progress this many seconds to finish; what waits has been ended."""
        self._stopping = True
        if self._server is not None:
            await self._server.stop(within)
        await self._calls.drain()

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        of_orders = {method.name: self._handler(method) for method in SERVICE.methods}
        yield grpc.method_handlers_generic_handler(SERVICE.full_name, of_orders)
        check: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
            self._check_health, None, _serialized
        )
        yield grpc.method_handlers_generic_handler(HEALTH, {"Check": check})
        servicer = reflection.aio.ReflectionServicer([SERVICE.full_name, HEALTH, REFLECTION[-1]])
        reflect = grpc.stream_stream_rpc_method_handler(
            self._bounded(servicer.ServerReflectionInfo),
            reflection_pb2.ServerReflectionRequest.FromString,
            _serialized,
        )
        for name in REFLECTION:
            yield grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": reflect})

    def _handler(self, described: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of a method.

        To gRPC it reads a stream, of which it takes one message: so it is called before there is any.
        """
        work, path = work_of(self._methods, described.name), f"/{SERVICE.full_name}/{described.name}"
        message = getattr(pb, described.input_type.name)

        async def handle(_: Any, context: Context) -> Message | None:
            async with self._calls.admitted(path, work, context) as call:
                return await work(message.FromString(await call.message()), call)

        kind = (
            grpc.stream_stream_rpc_method_handler
            if described.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return kind(handle, None, _serialized)

    async def _check_health(self, _: Any, context: Context) -> Any:
        """Answer whether the service works. Who keeps us waiting has little time if many do."""
        self._count_check(context)
        if self._unanswered[context.peer()] > MAX_CHECKS:
            code = CODES[HTTPStatus.TOO_MANY_REQUESTS]
            await context.abort(code, f"The connection has {MAX_CHECKS} checks in progress already")
        with self._checks.one() as waiting:
            within = MESSAGE_SECONDS if waiting <= MAX_WAITING_CHECKS else HURRIED_SECONDS
            try:
                request = health_pb2.HealthCheckRequest.FromString(await message_of(context, within))
            except (ProblemError, DecodeError) as error:
                failure = noted_failure(error, HEALTH)
                await context.abort(failure.code, failure.message)
        if request.service not in ("", SERVICE.full_name):
            await context.abort(grpc.StatusCode.NOT_FOUND, "This service is not served here")
        serving = not self._stopping and not await self._unready()
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if serving else states.NOT_SERVING)

    def _count_check(self, context: Context) -> None:
        """Count a check of a connection until its answer has been taken."""
        connection = context.peer()
        self._unanswered[connection] += 1
        context.add_done_callback(lambda _: self._forget_check(connection))  # type: ignore[arg-type]  # wrong stub

    def _forget_check(self, connection: str) -> None:
        self._unanswered[connection] -= 1
        if not self._unanswered[connection]:
            del self._unanswered[connection]

    def _bounded(self, reflect: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        """Bound what callers who are not known may keep open."""

        async def serve(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            with self._reflections.one() as taken:
                if taken > MAX_REFLECTIONS:
                    code = CODES[HTTPStatus.TOO_MANY_REQUESTS]
                    await context.abort(code, f"{MAX_REFLECTIONS} clients use reflection already; try again")
                try:
                    async with asyncio.timeout(REFLECTION_SECONDS):
                        async for answer in reflect(requests, context):
                            yield answer
                except TimeoutError:
                    await context.abort(
                        CODES[HTTPStatus.GATEWAY_TIMEOUT], "A reflection stream is closed after a while"
                    )

        return serve


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def work_of(methods: OrderMethods | type[OrderMethods], name: str) -> Method:
    """Return what does the work of a method of the contract, such as create_order for CreateOrder."""
    work: Method = getattr(methods, re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower())
    return work


def _options(settings: OrderSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # otherwise a second process on the port would not fail, but take half of the calls
        ("grpc.max_receive_message_length", MAX_BODY_BYTES),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # It counts streams that have ended until the server has cleaned up after them. A client takes their places
        # before that, and would get REFUSED_STREAM instead of an answer.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
    ]


def _credentials(settings: OrderSettings) -> grpc.ServerCredentials | None:
    """Return the TLS of the server, None without a certificate; new files are used by new connections."""
    certificate, key, client_ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    if certificate is None or key is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        authorities = client_ca.read_bytes() if client_ca else None
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), certificate.read_bytes())], authorities)

    paths: list[Path] = [path for path in (certificate, key, client_ca) if path]
    files = WatchedFiles(paths, read, "certificate of gRPC")
    return grpc.dynamic_ssl_server_credentials(files.current(), files.current, client_ca is not None)
