"""A lean route answers every request as a route of the framework does, and leaves to it what it does not read."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Cookie, Depends, Header, Path, Query, Request, Response
from fastapi import Body as Payload
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from structlog.contextvars import get_contextvars

from order_service.api import IdempotencyKey, Preference
from order_service.new_order import NewOrder
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission, Role
from shared.access.principal import Principal
from shared.http import MAX_BODY_BYTES, Body, StrictRoute, conflict, create_app, json_response, new_router
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


@requires(Permission.ORDERS_PLACE)
async def _echo_part(
    name: Annotated[str, Path(min_length=2, max_length=20)],
    number: Annotated[int, Path(ge=0)],
    caller: Caller,
    new: NewOrder | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer with all that was read, also of the path; the body may be left out."""
    read = None if new is None else new.model_dump(mode="json")
    return json_response([name, number, caller.id, read, idempotency_key])


@requires(Permission.ORDERS_PLACE)
async def _echo_path(order_id: Annotated[str, Path(min_length=2)], request: Request) -> Response:
    """Answer with the path; neither the caller nor a body is read."""
    return json_response([order_id, request.method, get_contextvars()])


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app("test", "", _ready, authenticator=key_authenticator())
    for path, route_class in ((USUAL, StrictRoute), (LEAN, LeanRoute)):
        router = new_router("orders", route_class=route_class)
        router.add_api_route(path, _echo, methods=["POST"])
        router.add_api_route(path + "/{name}/{number}", _echo_part, methods=["POST"])
        router.add_api_route(path + "/{order_id}", _echo_path, methods=["GET", "DELETE"])
        app.router.routes.extend(router.routes)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as found:
        yield found


async def answers(
    client: httpx.AsyncClient, content: Any, headers: Any, method: str = "POST", more: str = ""
) -> list[Any]:
    """Return the answer of each route, at this path below it: status, headers and body."""
    found = []
    for path in (USUAL, LEAN):
        response = await client.request(
            method, path + more, content=content, headers=[*headers, ("x-request-id", "r1")]
        )
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


PARTS = st.sampled_from(["ab", "a", "a" * 21, "%C3%A9%20", "0", "7", "-1", "x", "%2F", ""])


@settings(deadline=None, max_examples=150)
@given(
    name=PARTS,
    number=PARTS,
    body=BODIES,
    media=st.sampled_from([JSON, JSON, ("content-type", "text/plain")]),
    more=HEADERS,
    key=st.sampled_from([KEY, KEY, ("accept", "*/*")]),
)
async def test_both_routes_read_paths_alike(
    client: httpx.AsyncClient, name: str, number: str, body: bytes, media: Any, more: list[Any], key: Any
) -> None:
    headers = [(header, value.encode("latin-1")) for header, value in (media, *more, key)]
    usual, lean = await answers(client, body, headers, more=f"/{name}/{number}")
    assert usual == lean


@pytest.mark.parametrize("content", [b"", b"null", b"{}", GOOD])
async def test_a_body_may_be_left_out(client: httpx.AsyncClient, content: bytes) -> None:
    usual, lean = await answers(client, content, [KEY, JSON], more="/ab/7")
    assert usual == lean
    assert lean[0] == (422 if content == b"{}" else 200)
    if content != b"{}":
        name, number, _, read, _ = json.loads(lean[2])
        assert (name, number, read is None) == ("ab", 7, content in (b"", b"null"))


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("content", [b"", b"not JSON", GOOD])
@pytest.mark.parametrize("headers", [[KEY], [KEY, JSON], [KEY, ("content-type", "text/plain")], []])
async def test_both_routes_leave_the_same_bodies_unread(
    client: httpx.AsyncClient, method: str, content: bytes, headers: list[tuple[str, str]]
) -> None:
    usual, lean = await answers(client, content, headers, method, "/order-1")
    assert usual == lean


async def test_the_log_lines_of_an_order_name_it(client: httpx.AsyncClient) -> None:
    usual, lean = await answers(client, b"", [KEY], "GET", "/order-1")
    assert usual == lean
    assert json.loads(lean[2])[2]["order_id"] == "order-1"
    assert "order_id" not in get_contextvars()


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


async def _with_query(new: _Other, caller: Caller, more: Annotated[int, Query()] = 1) -> Response:
    """Take a parameter of the query."""
    return json_response([new.name, more, caller.id])


async def _with_cookie(new: _Other, caller: Caller, more: Annotated[int, Cookie()] = 1) -> Response:
    """Take a cookie."""
    return json_response([new.name, more, caller.id])


async def _with_two_bodies(new: _Other, other: _Other, caller: Caller) -> Response:
    """Take two bodies."""
    return json_response([new.name, other.name, caller.id])


async def _with_lines(new: _Other, caller: Caller, accept: Annotated[list[str] | None, Header()] = None) -> Response:
    """Take every line of a header."""
    return json_response([new.name, accept, caller.id])


async def _with_needed_lines(new: _Other, caller: Caller, accept: Annotated[list[str], Header()]) -> Response:
    """Take every line of a header that must be there."""
    return json_response([new.name, accept, caller.id])


async def _with_needed_header(new: _Other, caller: Caller, accept: Annotated[str, Header()]) -> Response:
    """Take a header that must be there."""
    return json_response([new.name, accept, caller.id])


async def _with_response(new: _Other, response: Response) -> Response:
    """Take the answer to add headers to."""
    return json_response([new.name, response.status_code])


async def _with_tasks(new: _Other, tasks: BackgroundTasks) -> Response:
    """Take what runs after the answer."""
    return json_response([new.name, len(tasks.tasks)])


async def _with_named_body(new: Annotated[_Other, Payload(embed=True)], caller: Caller) -> Response:
    """Take a body in a field of its own."""
    return json_response([new.name, "embedded", caller.id])


def _another() -> str:
    return "another"


async def _with_another_dependency(new: _Other, another: Annotated[str, Depends(_another)]) -> Response:
    """Take what the framework has to find."""
    return json_response([new.name, another])


FLAT, NAMED = {"name": "n"}, {"new": {"name": "n"}}


@pytest.mark.parametrize(
    ("endpoint", "body", "answer"),
    [
        (_with_query, FLAT, ["n", 2]),
        (_with_cookie, FLAT, ["n", 2]),
        (_with_two_bodies, NAMED | {"other": {"name": "o"}}, ["n", "o"]),
        (_with_lines, FLAT, ["n", ["*/*"]]),
        (_with_needed_lines, FLAT, ["n", ["*/*"]]),
        (_with_needed_header, FLAT, ["n", "*/*"]),
        (_with_response, FLAT, ["n", None]),
        (_with_tasks, FLAT, ["n", 0]),
        (_with_named_body, NAMED, ["n", "embedded"]),
        (_with_another_dependency, FLAT, ["n", "another"]),
    ],
)
async def test_what_a_lean_route_does_not_read_is_left_to_the_framework(endpoint: Any, body: Any, answer: Any) -> None:
    requires(Permission.ORDERS_PLACE)(endpoint)
    app = create_app("test", "", _ready, authenticator=key_authenticator())
    router = new_router("orders", route_class=LeanRoute)
    router.add_api_route(LEAN, endpoint, methods=["POST"])
    app.router.routes.extend(router.routes)
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "cookie": "more=2"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        given = await client.post(f"{LEAN}?more=2", json=body, headers=headers)
    assert given.json()[:2] == answer


def test_a_lean_route_refuses_what_it_cannot_do() -> None:
    def waits() -> Response:
        return json_response([])

    with pytest.raises(TypeError, match="must be asynchronous"):
        LeanRoute(LEAN, waits, methods=["GET"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="before anything can be checked"):
        LeanRoute(LEAN, checked_before_body(_refuse_key)(_with_query), methods=["POST"])
