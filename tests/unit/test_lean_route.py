"""A lean route answers every request as a route of the framework does, and refuses what it would not read."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Header, Query, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from order_service.api import IdempotencyKey, Preference
from order_service.new_order import NewOrder
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission, Role
from shared.access.principal import Principal
from shared.http import MAX_BODY_BYTES, Body, conflict, create_app, json_response, new_router
from shared.lean_route import LeanRoute, checked_before_body
from tests.support.access import ADMIN_KEY, KEYS, bearer, key_authenticator
from tests.support.builders import order_body

USUAL, LEAN = "/usual", "/lean"


async def _ready() -> dict[str, str]:
    return {}


@requires(Permission.ORDERS_PLACE)
async def _echo(
    new: NewOrder,
    caller: Caller,
    request: Request,
    idempotency_key: IdempotencyKey = None,
    prefer: Preference = None,
    number: Annotated[int, Header(ge=0)] = 7,
) -> Response:
    """Answer with all that was read."""
    read = new.model_dump(mode="json")
    return json_response([read, caller.id, request.method, idempotency_key, prefer, number], 202, {"x-echo": "yes"})


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app("test", "", _ready, authenticator=key_authenticator())
    router = new_router("orders")
    router.add_api_route(USUAL, _echo, methods=["POST"])
    router.add_api_route(LEAN, _echo, methods=["POST"], route_class_override=LeanRoute)
    app.router.routes.extend(router.routes)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as found:
        yield found


async def answers(client: httpx.AsyncClient, content: Any, headers: Any, method: str = "POST") -> list[Any]:
    """Return the answer of each route: status, headers and body."""
    found = []
    for path in (USUAL, LEAN):
        response = await client.request(method, path, content=content, headers=[*headers, ("x-request-id", "r1")])
        found.append((response.status_code, dict(response.headers), response.text.replace(path, "")))
    return found


JSON = ("content-type", "application/json")
KEY = ("authorization", f"Bearer {ADMIN_KEY}")
GOOD = json.dumps(order_body()).encode()

BODIES = st.one_of(
    st.sampled_from(
        [GOOD, b"", b"null", b"[]", b"{}", b"7", b'"x"', b"{", b"\xff", b"[" * 500, b'{"a":NaN}', b" ", b'{"userId":1}']
    ),
    st.builds(
        lambda changes: json.dumps(order_body() | changes).encode(),
        st.dictionaries(
            st.sampled_from(["userId", "items", "totalAmount", "currency", "payment", "delivery", "note", "more"]),
            st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none()), st.just({})),
            min_size=1,
            max_size=3,
        ),
    ),
)
HEADERS = st.lists(
    st.sampled_from(
        [
            *(("idempotency-key", value) for value in ("k", "", "k" * 255, "k" * 256, "é")),
            *(("prefer", value) for value in ("wait=1", "p" * 1001)),
            *(("number", value) for value in ("3", "-1", "x", "")),
        ]
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(
    body=BODIES,
    media=st.sampled_from([JSON, JSON, ("content-type", "text/plain"), ("content-type", "application/x+json")]),
    more=HEADERS,
    key=st.sampled_from([KEY, KEY, KEY, ("authorization", "Bearer osk_wrong"), ("accept", "*/*")]),
)
async def test_both_routes_answer_alike(
    client: httpx.AsyncClient, body: bytes, media: Any, more: list[Any], key: Any
) -> None:
    headers = [(name, value.encode("latin-1")) for name, value in (media, *more, key)]
    usual, lean = await answers(client, body, headers)
    assert usual == lean


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
async def test_both_routes_refuse_other_methods(client: httpx.AsyncClient, method: str) -> None:
    usual, lean = await answers(client, b"", [KEY], method)
    assert usual == lean
    assert usual[0] == 405


async def test_a_body_that_is_too_large_is_refused_even_if_its_length_is_not_declared(
    client: httpx.AsyncClient,
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * MAX_BODY_BYTES

    found = [await client.post(path, content=parts(), headers=[JSON, KEY]) for path in (USUAL, LEAN)]
    assert [response.status_code for response in found] == [413, 413]


async def test_a_good_request_reaches_the_endpoint(client: httpx.AsyncClient) -> None:
    _, (status, headers, text) = await answers(client, GOOD, [JSON, KEY, ("idempotency-key", "k1"), ("number", "3")])
    assert status == 202
    assert headers["x-echo"] == "yes"
    assert json.loads(text)[2:] == ["POST", "k1", None, 3]


async def test_a_check_of_the_headers_comes_before_the_body_and_after_the_permission() -> None:
    @requires(Permission.ORDERS_PLACE)
    @checked_before_body(_refuse_key)
    async def echo(new: NewOrder, caller: Caller, request: Request) -> Response:
        return json_response([new.user_id, caller.id, request.method])

    app = create_app("test", "", _ready, authenticator=key_authenticator())
    router = new_router("orders")
    router.add_api_route(LEAN, echo, methods=["POST"], route_class_override=LeanRoute)
    app.router.routes.extend(router.routes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

        async def status(role: Role, key: str, content: bytes) -> int:
            headers = {**bearer(KEYS[role]), "idempotency-key": key, "content-type": "application/json"}
            return (await client.post(LEAN, content=content, headers=headers)).status_code

        assert await status(Role.ADMIN, "refused", b"not JSON") == 409
        assert await status(Role.ADMIN, "accepted", b"not JSON") == 400
        assert await status(Role.ADMIN, "accepted", GOOD) == 200
        assert await status(Role.VIEWER, "refused", b"not JSON") == 403


async def _refuse_key(headers: Headers, caller: Principal) -> None:
    if headers["idempotency-key"] == "refused":
        raise conflict(f"{caller.id} is refused")


class _Other(Body):
    name: str


async def _with_query(new: _Other, caller: Caller, request: Request, more: Annotated[int, Query()] = 1) -> None:
    """Take a parameter of the query."""


async def _without_body(caller: Caller, request: Request) -> None:
    """Take no body."""


async def _with_two_bodies(new: _Other, other: _Other, caller: Caller, request: Request) -> None:
    """Take two bodies."""


async def _without_caller(new: _Other, request: Request) -> None:
    """Serve everybody."""


async def _with_path(new: _Other, caller: Caller, request: Request, number: int) -> None:
    """Take a parameter of the path."""


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/x", _with_query),
        ("/x", _without_body),
        ("/x", _with_two_bodies),
        ("/x", _without_caller),
        ("/x/{number}", _with_path),
    ],
)
def test_what_a_lean_route_would_not_read_is_refused(path: str, endpoint: Any) -> None:
    with pytest.raises(TypeError, match="a lean route takes"):
        LeanRoute(path, endpoint, methods=["POST"])
