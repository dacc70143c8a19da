"""Clients of the gRPC service that open many calls, send nothing, or send what no library would."""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2

from order_service.rpc import calls, server
from order_service.rpc.generated import orders_pb2 as pb
from shared.access.authenticator import Authenticator
from shared.access.permissions import Role
from tests.support.access import KEYS
from tests.support.builders import connected
from tests.support.eventually import eventually
from tests.support.grpc_servers import GrpcService, metadata, new_order, refusal, refused, run_grpc_service
from tests.support.raw_grpc import DATA, END_STREAM, raw_client

CREATE, GET = "/ordersaga.v1.OrderService/CreateOrder", "/ordersaga.v1.OrderService/GetOrder"
WATCH, CHECK = "/ordersaga.v1.OrderService/WatchOrder", "/grpc.health.v1.Health/Check"
CLIENT = metadata(KEYS[Role.CLIENT])
RAW_CLIENT = {b"authorization": f"Bearer {KEYS[Role.CLIENT]}".encode()}
NO_ORDER = pb.GetOrderRequest(order_id="x1")
WITHIN = 60


@pytest.fixture(scope="module")
async def database(servers: Any) -> AsyncIterator[Any]:
    async with connected(servers.mongodb_url, "t_grpc_limits") as opened:
        yield opened
        await opened.client.drop_database(opened.name)


@pytest.fixture(scope="module")
async def service(database: Any) -> AsyncIterator[GrpcService]:
    async with run_grpc_service(database) as running:
        yield running


def status(answer: bytes) -> StatusCode:
    """Return the status in the frames of the first answer of a connection: later ones refer to it."""
    _, _, rest = answer.partition(b"grpc-status")
    number = int(rest[1 : 1 + rest[0]])
    return next(code for code in StatusCode if code.value[0] == number)


async def is_serving(service: GrpcService) -> bool:
    check: Any = service.channel.unary_unary(CHECK, response_deserializer=health_pb2.HealthCheckResponse.FromString)
    return bool((await check(b"", timeout=WITHIN)).status == health_pb2.HealthCheckResponse.SERVING)


async def test_more_calls_at_once_than_a_connection_takes_are_all_answered(service: GrpcService) -> None:
    number = 4 * server.MAX_STREAMS
    ends = await asyncio.gather(
        *(refusal(service.orders.GetOrder(NO_ORDER, metadata=CLIENT, timeout=WITHIN)) for _ in range(number))
    )
    assert Counter(end.code for end in ends) == {StatusCode.NOT_FOUND: number}


@pytest.mark.parametrize("path", [CREATE, GET, WATCH])
async def test_a_caller_who_is_not_known_is_told_before_sending_anything(service: GrpcService, path: str) -> None:
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        assert status(await client.end_of(await client.open(path))) is StatusCode.UNAUTHENTICATED


async def test_a_call_without_a_message_ends(service: GrpcService, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        call = await client.open(GET, RAW_CLIENT)
        await client.send(DATA, END_STREAM, call)
        assert status(await client.end_of(call)) is StatusCode.INVALID_ARGUMENT
    monkeypatch.setattr(calls, "MESSAGE_SECONDS", 0.1)
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        assert status(await client.end_of(await client.open(GET, RAW_CLIENT))) is StatusCode.DEADLINE_EXCEEDED
    late: Any = service.channel.stream_unary(GET)(metadata=CLIENT, timeout=WITHIN)
    with pytest.raises(aio.AioRpcError) as raised:
        await late
    end = refused(raised.value)
    assert (end.code, end.reason) == (StatusCode.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT")


async def test_callers_who_send_nothing_take_no_more_than_the_places_of_calls(
    service: GrpcService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_CALLS", 3)
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        silent = [await client.open(CREATE, RAW_CLIENT) for _ in range(3)]

        async def end() -> Any:
            return await refusal(service.orders.GetOrder(NO_ORDER, metadata=CLIENT))

        async def is_full() -> bool:
            if (await end()).code is StatusCode.RESOURCE_EXHAUSTED:
                return True
            silent.append(await client.open(CREATE, RAW_CLIENT))  # this question may have taken the place of one
            return False

        async def has_room() -> bool:
            return (await end()).code is StatusCode.NOT_FOUND

        await eventually(is_full, WITHIN, "the places to be taken")
        full = await end()
        assert (full.reason, full.retry_seconds) == ("TOO_MANY_CALLS", 1)
        assert await is_serving(service)
        for call in silent:
            await client.reset(call)
        await eventually(has_room, WITHIN, "the places to be free")


async def test_health_checks_without_a_message_leave_room_for_others(
    service: GrpcService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_WAITING_CHECKS", 2)
    monkeypatch.setattr(server, "MESSAGE_SECONDS", 600)
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        opened = [await client.open(CHECK) for _ in range(server.MAX_STREAMS)]
        assert await is_serving(service)
        left = set(opened[2:])
        while left:
            frame = await client.frame()
            if frame.ends_call:
                left.discard(frame.stream)
        await client.message(opened[0], b"")
        assert status(await client.end_of(opened[0])) is StatusCode.OK
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        wrong = await client.open(CHECK)
        await client.message(wrong, b"\xff")
        assert status(await client.end_of(wrong)) is StatusCode.INVALID_ARGUMENT


async def test_health_checks_whose_answer_is_not_taken_leave_room_for_others(service: GrpcService) -> None:
    async with raw_client(service.port, window=0) as client, asyncio.timeout(WITHIN):
        for number in range(server.MAX_CHECKS + 1):
            call = await client.open(CHECK)
            await client.message(call, b"")
            if number == server.MAX_CHECKS:
                assert status(await client.end_of(call)) is StatusCode.RESOURCE_EXHAUSTED
        assert await is_serving(service)


async def test_calls_that_are_given_up_at_once_leave_the_service_as_it_was(service: GrpcService) -> None:
    async with raw_client(service.port) as client:
        for _ in range(5000):
            await client.reset(await client.open(GET, RAW_CLIENT))
        async with asyncio.timeout(WITHIN):
            assert await is_serving(service)
            end = await refusal(service.orders.GetOrder(NO_ORDER, metadata=CLIENT))
    assert end.code is StatusCode.NOT_FOUND


ODD: list[tuple[dict[bytes, bytes], StatusCode]] = [
    ({b"authorization": b"Bearer \xc3\xa4"}, StatusCode.UNAUTHENTICATED),
    ({b"authorization": b"Bearer \xe2\x82\xac"}, StatusCode.UNAUTHENTICATED),
    ({b"authorization": b"Bearer \xff"}, StatusCode.UNAUTHENTICATED),
    ({b"authorization": b""}, StatusCode.UNAUTHENTICATED),
    ({b"authorization-bin": b"QmVhcmVy"}, StatusCode.UNAUTHENTICATED),
    ({**RAW_CLIENT, b"idempotency-key": b"\xe2\x82\xac"}, StatusCode.INVALID_ARGUMENT),
    ({**RAW_CLIENT, b"x-request-id": b"\xe2\x82\xac"}, StatusCode.INVALID_ARGUMENT),
    ({**RAW_CLIENT, b"ordersaga-acts-for": b"\xff"}, StatusCode.UNAUTHENTICATED),
    ({**RAW_CLIENT, b"traceparent": b"\xe2\x82\xac"}, StatusCode.INVALID_ARGUMENT),
    ({**RAW_CLIENT, b"user-agent": b"\xe2\x82\xac"}, StatusCode.INVALID_ARGUMENT),
]


@pytest.mark.parametrize(("fields", "code"), ODD, ids=[str(list(fields.items())[-1]) for fields, _ in ODD])
async def test_odd_metadata_is_refused_or_ignored(
    service: GrpcService, fields: dict[bytes, bytes], code: StatusCode
) -> None:
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        call = await client.open(CREATE, fields)
        await client.message(call, b"")  # an order without anything
        assert status(await client.end_of(call)) is code
    assert await is_serving(service)


async def test_a_deadline_that_is_past_ends_the_call(service: GrpcService) -> None:
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        call = await client.open(CREATE, {**RAW_CLIENT, b"grpc-timeout": b"1n"})
        await client.message(call, b"")
        # It may be refused first, never kept.
        assert status(await client.end_of(call)) in (StatusCode.DEADLINE_EXCEEDED, StatusCode.INVALID_ARGUMENT)
    assert await is_serving(service)


@pytest.mark.parametrize("path", [CREATE, CHECK])
async def test_a_message_that_is_large_once_unpacked_is_refused(service: GrpcService, path: str) -> None:
    packed = gzip.compress(b"\0" * 10_000_000)
    async with raw_client(service.port) as client, asyncio.timeout(WITHIN):
        call = await client.open(path, {**RAW_CLIENT, b"grpc-encoding": b"gzip"})
        await client.message(call, packed, compressed=True)
        assert status(await client.end_of(call)) is StatusCode.RESOURCE_EXHAUSTED
    assert await is_serving(service)


async def test_without_authentication_everybody_is_served(database: Any) -> None:
    async with run_grpc_service(database, authenticator=Authenticator(None)) as service:
        placed = await service.orders.CreateOrder(new_order())
        found = await service.orders.GetOrder(pb.GetOrderRequest(order_id=placed.order_id))
        assert found == placed
        # Not a page of another site, all the same.
        end = await refusal(service.orders.GetOrder(NO_ORDER, metadata=(("origin", "https://evil.example"),)))
        assert end.code is StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(("length", "code"), [(20_000, "UNAUTHENTICATED"), (40_000, "RESOURCE_EXHAUSTED")])
async def test_a_credential_may_not_be_of_any_length(service: GrpcService, length: int, code: str) -> None:
    end = await refusal(service.orders.GetOrder(NO_ORDER, metadata=metadata("x" * length), timeout=WITHIN))
    assert end.code is StatusCode[code]
