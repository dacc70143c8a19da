"""The gRPC service over a real MongoDB: its answers, its refusals, and who is admitted."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from pymongo.read_concern import ReadConcern

from order_service.order_actions import OrderActions
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.generated.orders_pb2_grpc import OrderServiceStub
from order_service.rpc.methods import OrderMethods
from order_service.rpc.server import SERVICE, work_of
from scripts.proto import ROOT
from shared.access.middleware import permission_of
from shared.access.permissions import ROLES, Role
from shared.contracts.failures import FailureCode
from shared.contracts.inventory import StockReleased, StockReservationFailed, StockReserved
from shared.contracts.payments import PaymentProcessed, PaymentRefunded
from shared.errors import StartError
from tests.support.access import KEYS, OTHER_CLIENT_KEY
from tests.support.builders import connected
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.grpc_servers import GrpcService, metadata, new_order, refusal, refused, run_grpc_service

SLOT = "slot:1893456000"
CLIENT = metadata(KEYS[Role.CLIENT])


@pytest.fixture(scope="module")
async def database(servers: Any) -> AsyncIterator[Any]:
    async with connected(servers.mongodb_url, "t_grpc_orders") as opened:
        yield opened
        await opened.client.drop_database(opened.name)


@pytest.fixture(scope="module")
async def service(database: Any) -> AsyncIterator[GrpcService]:
    async with run_grpc_service(database) as running:
        yield running


@pytest.fixture
def orders(service: GrpcService) -> Any:
    return service.orders


def status_of(order: pb.Order) -> str:
    return pb.OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_")


async def test_an_order_is_accepted_and_found_again_with_all_that_was_given(orders: Any) -> None:
    request = new_order(
        items=[
            {
                "product_id": "p1",
                "quantity": 3,
                "price": "19.99",
                "name": "Tea",
                "options_json": '{"sugar":1.50,"n":3}',
            },
            {"product_id": "p2", "quantity": 1, "price": "0.02"},
        ],
        discounts=[{"code": "SPRING", "amount": "5"}],
        shipping_amount="2.5",
        total_amount="57.49",
        currency="EUR",
        payment={"token": "tok_ok"},
        customer={"name": "Ann Lee", "email": "ann@example.com"},
        delivery={"method": "delivery", "address": {"line1": "1 Main St", "postal_code": "AB1"}, "call_before": False},
        note="Ring twice",
        metadata={"source": "app"},
    )
    placed = await orders.CreateOrder(request, metadata=CLIENT)
    found = await orders.GetOrder(pb.GetOrderRequest(order_id=placed.order_id), metadata=CLIENT)
    assert found == placed
    assert (status_of(found), found.total_amount, found.shipping_amount) == ("PENDING", "57.49", "2.50")
    assert [(item.price, item.options_json) for item in found.items] == [("19.99", '{"sugar":1.5,"n":3}'), ("0.02", "")]
    assert [(each.code, each.amount) for each in found.discounts] == [("SPRING", "5.00")]
    assert (found.customer, found.delivery.address) == (request.customer, request.delivery.address)
    assert found.delivery.HasField("call_before")
    assert (found.note, dict(found.metadata)) == ("Ring twice", {"source": "app"})
    assert [(entry.number, entry.event) for entry in found.history] == [(1, "order.created")]
    assert "tok_ok" not in str(found)


async def test_a_key_names_one_order_however_its_metadata_is_ordered(orders: Any, unique_id: str) -> None:
    keyed = metadata(KEYS[Role.CLIENT], idempotency_key=unique_id)
    first, again = (dict(sorted(((f"k{n}", str(n)) for n in range(40)), reverse=reverse)) for reverse in (False, True))
    ids = {
        (await orders.CreateOrder(new_order(metadata=given), metadata=keyed)).order_id
        for given in (first, again, first)
    }
    assert len(ids) == 1
    other = await refusal(orders.CreateOrder(new_order(user_id="u2"), metadata=keyed))
    assert other.code is StatusCode.INVALID_ARGUMENT
    assert "used before with another body" in other.violations["idempotency-key"]
    # Another owner's key is another key.
    elsewhere = metadata(OTHER_CLIENT_KEY, idempotency_key=unique_id)
    assert (await orders.CreateOrder(new_order(metadata=first), metadata=elsewhere)).order_id not in ids
    for wrong in ("x" * 256, ""):
        answer = await refusal(orders.CreateOrder(new_order(), metadata=metadata(idempotency_key=wrong)))
        assert (answer.code, *answer.violations) == (StatusCode.INVALID_ARGUMENT, "idempotency-key")


ITEM = {"product_id": "p1", "quantity": 1, "price": "10"}
INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"user_id": ""}, "user_id", "required"),
    ({"items": []}, "items", "at least 1 entry"),
    ({"items": [ITEM | {"quantity": 0}]}, "items[0].quantity", "must be at least 1"),
    ({"items": [ITEM, ITEM]}, "items", "listed twice"),
    ({"items": [ITEM] * 150}, "items", "at most 100"),
    ({"items": [ITEM | {"price": "1e1"}]}, "items[0].price", "decimal number as text"),
    ({"items": [ITEM | {"price": "NaN"}]}, "items[0].price", "decimal number as text"),
    ({"items": [ITEM | {"price": "9.999"}]}, "items[0].price", "at most two decimals"),
    ({"items": [ITEM | {"price": "-1"}]}, "items[0].price", "must be at least 0"),
    ({"items": [ITEM | {"options_json": "{"}]}, "items[0].options_json", "must be JSON"),
    ({"items": [ITEM | {"options_json": "[1]"}]}, "items[0].options_json", "must be an object"),
    ({"total_amount": "11"}, "total_amount", "add up to 10"),
    ({"total_amount": ""}, "total_amount", "required"),
    ({"payment": {"method": "retainer"}}, "payment.retainer_id", "required"),
    ({"delivery": {"slot": "tomorrow"}}, "delivery.slot", "slot:1893456000"),
    ({"metadata": {f"k{number}": "v" for number in range(51)}}, "metadata", "51 names"),
]


@pytest.mark.parametrize(("changes", "field", "message"), INVALID, ids=[f"{case[1]}: {case[2]}" for case in INVALID])
async def test_what_is_invalid_is_named(orders: Any, changes: dict[str, Any], field: str, message: str) -> None:
    answer = await refusal(orders.CreateOrder(new_order(**changes), metadata=CLIENT))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert message in answer.violations[field]
    assert field in answer.message


async def test_many_errors_fit_into_a_status(orders: Any) -> None:
    items = [{"product_id": f"{number}" + "ü" * 200, "quantity": 0} for number in range(100)]
    answer = await refusal(orders.CreateOrder(new_order(items=items), metadata=CLIENT))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert 5 < len(answer.violations) < 100


async def test_what_is_no_message_or_too_large_is_refused(service: GrpcService) -> None:
    create: Any = service.channel.unary_unary(f"/{SERVICE.full_name}/CreateOrder")
    assert (await refusal(create(b"\xff\xff", metadata=CLIENT))).code is StatusCode.INVALID_ARGUMENT
    # The caller is refused before the request is read.
    assert (await refusal(create(b"\xff\xff"))).code is StatusCode.UNAUTHENTICATED
    assert (await refusal(create(b"x" * (256 * 1024 + 1), metadata=CLIENT))).code is StatusCode.RESOURCE_EXHAUSTED


REQUESTS = {
    "CreateOrder": new_order(),
    "GetOrder": pb.GetOrderRequest(order_id="x1"),
    "CancelOrder": pb.CancelOrderRequest(order_id="x1"),
    "WatchOrder": pb.WatchOrderRequest(order_id="x1"),
}
METHODS = {name: work_of(OrderMethods, name) for name in REQUESTS}


async def end_of(call: Any) -> StatusCode:
    """Return how a call ends, with one answer or with many."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except aio.AioRpcError as error:
        return error.code()
    return StatusCode.OK


def test_every_method_of_the_contract_is_served_and_declares_a_permission() -> None:
    assert METHODS.keys() == REQUESTS.keys() == {method.name for method in SERVICE.methods}
    assert all(permission_of(method) for method in METHODS.values())


@pytest.mark.parametrize("method", METHODS)
async def test_each_role_may_do_what_the_table_says_and_nothing_else(orders: Any, method: str) -> None:
    call, permission = getattr(orders, method), permission_of(METHODS[method])
    for role, key in KEYS.items():
        code = await end_of(call(REQUESTS[method], metadata=metadata(key)))
        if permission in ROLES[role]:
            assert code is (StatusCode.OK if method == "CreateOrder" else StatusCode.NOT_FOUND), role
        else:
            assert code is StatusCode.PERMISSION_DENIED, role
    for wrong in (metadata(None), metadata("osk_wrong"), (("authorization", "Basic eDp5"),), metadata() * 2):
        assert await end_of(call(REQUESTS[method], metadata=wrong)) is StatusCode.UNAUTHENTICATED
    assert await end_of(call(REQUESTS[method], metadata=metadata(origin="https://evil.example"))) is (
        StatusCode.PERMISSION_DENIED
    )


async def test_an_order_of_another_owner_or_person_does_not_exist(orders: Any) -> None:
    order_id = (await orders.CreateOrder(new_order(user_id="u2"), metadata=CLIENT)).order_id
    for key in (OTHER_CLIENT_KEY, KEYS[Role.CUSTOMER]):
        for method in ("GetOrder", "CancelOrder", "WatchOrder"):
            request = type(REQUESTS[method])(order_id=order_id)
            assert await end_of(getattr(orders, method)(request, metadata=metadata(key))) is StatusCode.NOT_FOUND
    answer = await refusal(orders.CreateOrder(new_order(user_id="u2"), metadata=metadata(KEYS[Role.CUSTOMER])))
    assert answer.code is StatusCode.PERMISSION_DENIED
    assert "for yourself only" in answer.message


async def test_who_may_not_see_the_person_does_not(orders: Any) -> None:
    request = new_order(customer={"name": "Ann"}, note="Ring twice")
    placed = await orders.CreateOrder(request, metadata=CLIENT)
    assert placed.customer.name == "Ann"
    seen = await orders.GetOrder(pb.GetOrderRequest(order_id=placed.order_id), metadata=metadata(KEYS[Role.VIEWER]))
    assert (seen.customer.name, seen.note) == ("", "")


async def test_limits_of_callers_are_those_of_http(database: Any) -> None:
    async with run_grpc_service(database, rate="3/minute", failures="2/minute") as service:
        get = service.orders.GetOrder
        codes = [await end_of(get(REQUESTS["GetOrder"], metadata=CLIENT)) for _ in range(3)]
        assert codes == [StatusCode.NOT_FOUND] * 3
        limited = await refusal(get(REQUESTS["GetOrder"], metadata=CLIENT))
        assert (limited.code, limited.reason) == (StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert limited.retry_seconds
        codes = [await end_of(get(REQUESTS["GetOrder"], metadata=metadata("osk_wrong"))) for _ in range(3)]
        assert codes == [StatusCode.UNAUTHENTICATED] * 2 + [StatusCode.RESOURCE_EXHAUSTED]


async def test_writes_of_staff_and_refusals_are_in_the_audit_log(database: Any, orders: Any) -> None:
    order_id = (await orders.CreateOrder(new_order(), metadata=CLIENT)).order_id
    why = metadata(KEYS[Role.OPERATOR], ordersaga_reason="the shop called", x_request_id=f"r-{order_id}")
    call = orders.CancelOrder(pb.CancelOrderRequest(order_id=order_id), metadata=why)
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == f"r-{order_id}"
    await orders.GetOrder(pb.GetOrderRequest(order_id=order_id), metadata=metadata(KEYS[Role.OPERATOR]))
    entries = await database["actions"].find({"subject": order_id}).to_list()
    assert [(entry["action"], entry["why"], entry["requestId"]) for entry in entries] == [
        ("orders:cancel", "the shop called", f"r-{order_id}")
    ]
    refused_id = f"refused-{order_id}"
    viewer = metadata(KEYS[Role.VIEWER], x_request_id=refused_id)
    assert await end_of(orders.CreateOrder(new_order(), metadata=viewer)) is StatusCode.PERMISSION_DENIED
    assert (await database["actions"].find_one({"requestId": refused_id}))["outcome"] == "403"


async def test_an_action_whose_client_gave_up_is_in_the_audit_log(
    database: Any, orders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = (await orders.CreateOrder(new_order(), metadata=CLIENT)).order_id
    may_act, execute = asyncio.Event(), OrderActions.execute

    async def late(*arguments: Any) -> Any:
        await may_act.wait()
        return await execute(*arguments)

    monkeypatch.setattr(OrderActions, "execute", late)
    operator = metadata(KEYS[Role.OPERATOR], ordersaga_reason="the shop called")
    subjects = [order_id, f"not-{order_id}"]
    for subject in subjects:
        request = pb.CancelOrderRequest(order_id=subject)
        given_up = await refusal(orders.CancelOrder(request, metadata=operator, timeout=0.2))
        assert given_up.code is StatusCode.DEADLINE_EXCEEDED
    may_act.set()

    async def entries() -> Any:
        found = await database["actions"].find({"subject": {"$in": subjects}}).to_list()
        return found if len(found) == 2 else None

    recorded = await eventually(entries, 60, "the entries of the audit log")
    assert {(entry["subject"], entry["action"], entry["why"], entry["outcome"]) for entry in recorded} == {
        (subjects[0], "orders:cancel", "the shop called", "200"),
        (subjects[1], "orders:cancel", "the shop called", "404"),
    }
    assert status_of(await orders.GetOrder(pb.GetOrderRequest(order_id=order_id), metadata=CLIENT)) == "CANCELLED"


async def test_an_order_with_a_slot_is_answered_when_it_is_booked(service: GrpcService, database: Any) -> None:
    call = asyncio.ensure_future(order_with_slot(service, "booked"))
    order_id = await stored(database, "booked")
    assert not call.done()
    await service.answer(StockReserved(order_id=order_id, slot=SLOT))
    answer = await call
    assert (answer.order_id, answer.slot, answer.slot_start.ToJsonString()) == (order_id, SLOT, "2030-01-01T00:00:00Z")


async def order_with_slot(service: GrpcService, user: str, timeout: float = 30, **more: str) -> pb.Order:
    request = new_order(user_id=user, delivery={"slot": SLOT})
    found: pb.Order = await service.orders.CreateOrder(
        request, metadata=metadata(KEYS[Role.CLIENT], **more), timeout=timeout
    )
    return found


async def stored(database: Any, user: str) -> str:
    """Return the id of the only order of a user, once every handler finds it."""
    lasting = database["orders"].with_options(read_concern=ReadConcern("majority"))
    found = await eventually(lambda: lasting.find_one({"userId": user}), 60, f"the order of {user}")
    return str(found["_id"])


async def test_an_order_that_no_slot_has_room_for(service: GrpcService, database: Any, unique_id: str) -> None:
    reason = f"Delivery {SLOT} has no room for 10: 3 of 75 is free"
    call = asyncio.ensure_future(refusal(order_with_slot(service, unique_id, idempotency_key=unique_id)))
    order_id = await stored(database, unique_id)
    await service.answer(StockReservationFailed(order_id=order_id, reason=reason, code=FailureCode.SLOT_FULL))
    answer = await call
    assert (answer.code, answer.reason) == (StatusCode.RESOURCE_EXHAUSTED, "SLOTS_FULL")
    assert (answer.message, answer.about) == (reason, {"orderId": order_id})
    again = await refusal(order_with_slot(service, unique_id, idempotency_key=unique_id))
    assert (again.code, again.about) == (answer.code, answer.about)


async def test_an_order_that_is_refused_for_another_reason_is_answered_as_it_is(
    service: GrpcService, database: Any
) -> None:
    call = asyncio.ensure_future(order_with_slot(service, "unlucky"))
    order_id = await stored(database, "unlucky")
    await service.answer(
        StockReservationFailed(
            order_id=order_id, reason="Insufficient stock for p1", code=FailureCode.INSUFFICIENT_STOCK
        )
    )
    answer = await call
    assert (answer.order_id, status_of(answer)) == (order_id, "CANCELLED")
    assert "Insufficient stock" in answer.failure_reason
    assert answer.failure_code == "insufficient_stock"


async def test_a_deadline_ends_the_wait_and_not_the_order(service: GrpcService, database: Any, unique_id: str) -> None:
    call = asyncio.ensure_future(order_with_slot(service, unique_id, idempotency_key=unique_id))
    order_id = await stored(database, unique_id)
    late = await refusal(order_with_slot(service, unique_id, 0.2, idempotency_key=unique_id))
    assert late.code is StatusCode.DEADLINE_EXCEEDED
    await service.answer(StockReserved(order_id=order_id, slot=SLOT))
    assert (await call).order_id == order_id


async def test_a_client_that_goes_away_at_once_leaves_a_whole_order(
    service: GrpcService, database: Any, unique_id: str
) -> None:
    request = new_order(user_id=unique_id)
    call = service.orders.CreateOrder(request, metadata=metadata(KEYS[Role.CLIENT], idempotency_key=unique_id))
    await call.wait_for_connection()
    call.cancel()
    placed = await service.orders.CreateOrder(request, metadata=metadata(KEYS[Role.CLIENT], idempotency_key=unique_id))
    assert await database["orders"].count_documents({"userId": unique_id}) == 1
    assert await stored(database, unique_id) == placed.order_id


async def test_an_order_is_cancelled_only_while_its_status_allows_it(service: GrpcService, orders: Any) -> None:
    order_id = (await orders.CreateOrder(new_order(), metadata=CLIENT)).order_id
    request = pb.CancelOrderRequest(order_id=order_id, reason="Changed my mind")
    cancelled = await orders.CancelOrder(request, metadata=CLIENT)
    assert (status_of(cancelled), cancelled.failure_reason) == ("CANCELLED", "Changed my mind")
    confirmed_id = (await orders.CreateOrder(new_order(), metadata=CLIENT)).order_id
    await service.answer(StockReserved(order_id=confirmed_id))
    await service.answer(PaymentProcessed(order_id=confirmed_id, transaction_id="t1"))
    late = await refusal(orders.CancelOrder(pb.CancelOrderRequest(order_id=confirmed_id), metadata=CLIENT))
    assert late.code is StatusCode.FAILED_PRECONDITION
    assert "it cannot be cancelled" in late.message
    long = pb.CancelOrderRequest(order_id=order_id, reason="x" * 1001)
    assert (await refusal(orders.CancelOrder(long, metadata=CLIENT))).violations.keys() == {"reason"}


async def test_an_order_is_watched_until_it_is_settled(service: GrpcService, orders: Any) -> None:
    order_id = (await orders.CreateOrder(new_order(), metadata=CLIENT)).order_id
    stream = orders.WatchOrder(pb.WatchOrderRequest(order_id=order_id), metadata=CLIENT)
    events = aiter(stream)
    assert (await anext(events)).event == "order.created"
    await orders.CancelOrder(pb.CancelOrderRequest(order_id=order_id), metadata=CLIENT)
    await service.answer(StockReleased(order_id=order_id))
    await service.answer(PaymentRefunded(order_id=order_id, status="VOIDED"))
    rest = [event async for event in events]
    assert await stream.code() is StatusCode.OK
    assert [event.number for event in rest] == list(range(2, len(rest) + 2))
    assert rest[0].event == "order.cancel_requested"
    settled = await orders.GetOrder(pb.GetOrderRequest(order_id=order_id), metadata=CLIENT)
    assert settled.settled
    assert rest == list(settled.history)[1:]
    later = pb.WatchOrderRequest(order_id=order_id, after=2)
    assert [event async for event in orders.WatchOrder(later, metadata=CLIENT)] == rest[1:]


async def test_a_service_that_cannot_work_says_so(service: GrpcService, orders: Any) -> None:
    service.reason_to_refuse = "The service is starting"
    try:
        answer = await refusal(orders.CreateOrder(new_order(), metadata=CLIENT))
    finally:
        service.reason_to_refuse = None
    assert (answer.code, answer.message, answer.retry_seconds) == (StatusCode.UNAVAILABLE, "The service is starting", 1)


async def test_a_stopping_service_ends_those_who_wait(database: Any) -> None:
    async with run_grpc_service(database) as service:
        waiting = asyncio.ensure_future(refusal(order_with_slot(service, "stopped")))
        order_id = await stored(database, "stopped")
        events = aiter(service.orders.WatchOrder(pb.WatchOrderRequest(order_id=order_id), metadata=CLIENT))
        assert (await anext(events)).event == "order.created"
        for end_calls in service.parts.stopping:
            end_calls()
        await service.server.stop(60)
        answer, ended = await waiting, await refusal(anext(events))
    assert (answer.code, answer.reason) == (ended.code, ended.reason) == (StatusCode.UNAVAILABLE, "STOPPING")


async def test_health_is_that_of_the_service_and_needs_no_credential(service: GrpcService) -> None:
    check = service.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    for name in ("", SERVICE.full_name):
        assert (await check(health_pb2.HealthCheckRequest(service=name))).status == 1
    service.down["rabbitmq"] = "not connected"
    try:
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        service.down.clear()
    assert (await refusal(check(health_pb2.HealthCheckRequest(service="x")))).code is StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_tells_the_contract(service: GrpcService, version: str) -> None:
    reflect = service.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.full_name),
    ]
    listed, found = [answer async for answer in reflect(iter(asked))]
    assert SERVICE.full_name in {each.name for each in listed.list_services_response.service}
    assert found.file_descriptor_response.file_descriptor_proto[0] == pb.DESCRIPTOR.serialized_pb


async def test_a_taken_port_ends_the_start_with_one_line(service: GrpcService, database: Any) -> None:
    with pytest.raises(StartError, match=f"cannot listen on .* ORDERSAGA_GRPC_PORT={service.port}"):
        async with run_grpc_service(database, grpc_port=service.port):
            pass


async def test_with_a_certificate_there_is_only_tls_and_a_new_one_is_used(database: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    pair = certificates.issue("server")
    async with run_grpc_service(database, tls_cert_file=pair.certificate, tls_key_file=pair.key) as service:
        plain = await refusal(service.orders.GetOrder(REQUESTS["GetOrder"], metadata=CLIENT, timeout=60))
        assert plain.code is StatusCode.UNAVAILABLE
        assert await code_over_tls(service, certificates) is StatusCode.NOT_FOUND
        replaced = Certificates(tmp_path / "new")
        replaced.directory.mkdir()
        renewed = replaced.issue("server")
        pair.certificate.write_bytes(renewed.certificate.read_bytes())
        pair.key.write_bytes(renewed.key.read_bytes())

        async def is_renewed() -> bool:
            return await code_over_tls(service, replaced) is StatusCode.NOT_FOUND

        await eventually(is_renewed, 60, "the new certificate")


async def code_over_tls(service: GrpcService, certificates: Certificates) -> StatusCode:
    """Return how a call ends on a new connection that trusts these authorities."""
    credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.secure_channel(f"127.0.0.1:{service.port}", credentials, options) as channel:
        orders = OrderServiceStub(channel)  # type: ignore[no-untyped-call]
        return await end_of(orders.GetOrder(REQUESTS["GetOrder"], metadata=CLIENT, timeout=60))


async def test_the_example_of_the_docs_runs(service: GrpcService, database: Any, tmp_path: Path) -> None:
    page = (ROOT / "docs/grpc.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    command = next(line for line in page.splitlines() if "grpc_tools.protoc" in line).removeprefix("$ python ")
    compiled = command.replace("--proto_path proto", f"--proto_path {ROOT / 'proto'}").split()
    await run(sys.executable, *compiled, directory=tmp_path)
    environment = {"KEY": KEYS[Role.CLIENT], "ORDERS": f"127.0.0.1:{service.port}"}
    running = asyncio.ensure_future(run(sys.executable, "-c", example, directory=tmp_path, **environment))
    order_id = await stored(database, "ann")
    await service.answer(StockReservationFailed(order_id=order_id, reason="Insufficient stock for p1"))
    await service.answer(PaymentRefunded(order_id=order_id, status="VOIDED"))
    printed = (await running).splitlines()
    assert printed[0].endswith(" 39.98")
    assert printed[1:3] == ["1 order.created", "2 stock.reservation_failed"]


async def run(*command: str, directory: Path, **environment: str) -> str:
    """Run a command to its end, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, command
    return printed.decode()


async def test_a_call_that_would_wait_too_long_is_refused_with_the_time_to_try_again(database: Any) -> None:
    async with run_grpc_service(database, max_settle_seconds=1) as service:
        answers: list[Any] = []

        async def is_refused() -> bool:
            try:
                await service.orders.CreateOrder(new_order(), metadata=CLIENT)
            except aio.AioRpcError as error:
                answers.append(refused(error))
            return bool(answers)

        await eventually(is_refused, 60, "a call to be refused")
    answer = answers[0]
    assert (answer.code, answer.reason) == (StatusCode.UNAVAILABLE, "OVERLOADED")
    assert 1 <= answer.retry_seconds <= 10
