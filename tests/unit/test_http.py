"""The HTTP side that every service shares: each invalid request gets a problem answer, never a 500."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import Field
from pymongo.errors import AutoReconnect, OperationFailure

from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.asyncapi import ASYNCAPI_PATH
from shared.errors import BusUnavailableError, TransientError
from shared.http import (
    ALWAYS_SERVED,
    MAX_BODY_BYTES,
    MAX_UNKNOWN_FIELDS,
    Body,
    add_routes,
    conflict,
    create_app,
    invalid,
    new_router,
    not_found,
)
from shared.money import JsonMoney
from shared.readiness import Outage
from tests.support.access import ADMIN, key_authenticator
from tests.support.consoles import serve
from tests.support.eventually import eventually

PROBLEM = "application/problem+json"


class Thing(Body):
    name: Annotated[str, Field(min_length=1, max_length=20)]
    amount: JsonMoney
    parts: Annotated[tuple[int, ...], Field(max_length=3, strict=False)] = ()


class Listed(Body):
    parts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, strict=False)]


class Server:
    """The application under test; `down` makes it unready, `outages` degraded, and GET /failing raises `failure`."""

    def __init__(self) -> None:
        self.down: dict[str, str] = {}
        self.outages: dict[str, Outage] = {}
        self.failure: Exception = RuntimeError("secret detail")
        self.app: FastAPI = create_app(
            "test",
            "A test",
            self._readiness,
            authenticator=key_authenticator(),
            outages=lambda: self.outages,
            names={"shop.example"},
        )
        router = new_router("things")

        @router.post("/things", status_code=201)
        @requires(Permission.CATALOGUE_READ)
        async def post(thing: Thing) -> dict[str, Any]:
            return {"amount": thing.amount}

        @router.get("/failing")
        @requires(Permission.CATALOGUE_READ)
        async def fail() -> None:
            raise self.failure

        @router.get("/things/{thing_number}")
        @requires(Permission.CATALOGUE_READ)
        async def get(thing_number: int) -> int:
            return thing_number

        @router.put("/things/{thing_number}")
        @requires(Permission.CATALOGUE_READ)
        async def put(thing_number: int) -> int:
            return thing_number

        @router.post("/lists")
        @requires(Permission.CATALOGUE_READ)
        async def post_list(listed: Listed | None = None) -> int:
            return len(listed.parts) if listed else 0

        add_routes(self.app.router, router)

    async def _readiness(self) -> dict[str, str]:
        return self.down


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check that the answer is a problem with that status, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail"} <= body.keys()
    assert body["status"] == status
    return body


async def post(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    return await client.post("/things", content=body, headers={"content-type": "application/json", **headers})


async def test_a_good_body_gets_through(client: httpx.AsyncClient) -> None:
    response = await post(client, b'{"name": "n", "amount": 19.99, "parts": [1]}')
    assert (response.status_code, response.json()) == (201, {"amount": 1999})


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"name=n&amount=1",
        b"\xff\xfe{\x00}\x00",
        '{"name": "n", "amount": 1}'.encode("utf-16"),
        b'{"name": "\xe4", "amount": 1}',
        b'{"name": "\\ud800", "amount": 1}',
        b'{"\\ud800": 1}',
        b'{"name": "n", "amount": NaN}',
        b'{"name": "n", "amount": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"name": "n", "amount": ' + b"1" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_a_body_that_is_not_json_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    assert problem(await post(client, body), 400)["detail"] == "The body is not JSON"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ([], "body"),
        ("text", "body"),
        (7, "body"),
        (None, "body"),
        ({"name": "", "amount": 1}, "name"),
        ({"name": {"$gt": ""}, "amount": 1}, "name"),
        ({"name": "n", "amount": "1"}, "amount"),
        ({"name": "n", "amount": True}, "amount"),
        ({"name": "n", "amount": 1.999}, "amount"),
        ({"name": "n", "amount": 10**30}, "amount"),
        ({"name": "n", "amount": 1e300}, "amount"),
        ({"name": "n", "amount": 1, "parts": [1, "x"]}, "parts[1]"),
        ({"name": "n", "amount": 1, "parts": [1, 2, 3, 4]}, "parts"),
        ({"name": "n", "amount": 1, "extra": 1}, "extra"),
        ({"name": "n", "amount": 1, "x" * 5000: 1}, "x" * 100),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
async def test_a_body_of_the_wrong_shape_is_a_422_that_names_the_field(
    client: httpx.AsyncClient, body: Any, field: str
) -> None:
    answer = problem(await post(client, json.dumps(body).encode()), 422)
    assert answer["errors"][0]["field"] == field
    assert answer["errors"][0]["message"]
    assert len(json.dumps(answer)) < 3000


@pytest.mark.parametrize("unknown", [1, MAX_UNKNOWN_FIELDS])
async def test_a_few_unknown_fields_are_named_one_by_one(client: httpx.AsyncClient, unknown: int) -> None:
    body = {"name": "n", "amount": 1} | {f"field-{number}": number for number in range(unknown)}
    answer = problem(await post(client, json.dumps(body).encode()), 422)
    assert [error["field"] for error in answer["errors"]] == [f"field-{number}" for number in range(unknown)]


async def test_a_body_full_of_unknown_fields_is_refused_as_a_whole(client: httpx.AsyncClient) -> None:
    body = json.dumps({f"field-{number}": number for number in range(10_000)}).encode()
    answer = problem(await post(client, body), 422)
    assert answer["errors"] == [{"field": "body", "message": "has 10000 fields, allowed are name, amount, parts"}]


async def test_no_body_at_all_is_a_422(client: httpx.AsyncClient) -> None:
    problem(await client.post("/things"), 422)


@pytest.mark.parametrize(
    ("headers", "named", "accepted"),
    [
        ({}, "Content-Type is missing", "Accept"),
        ({"content-type": ""}, "Content-Type is ''", "Accept"),
        ({"content-type": "text/plain"}, "Content-Type is 'text/plain'", "Accept"),
        ({"content-type": "application/x-www-form-urlencoded"}, "x-www-form-urlencoded", "Accept"),
        ({"content-type": "application/jsonp"}, "application/jsonp", "Accept"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "Content-Encoding", "Accept-Encoding"),
        ({"content-type": "application/json", "content-encoding": "br, gzip"}, "Content-Encoding", "Accept-Encoding"),
    ],
)
@pytest.mark.parametrize("path", ["/things", "/lists"])
async def test_a_body_whose_headers_do_not_say_plain_json_is_a_415(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], named: str, accepted: str
) -> None:
    response = await client.post(path, content=b'{"name": "n", "amount": 1}', headers=headers)
    assert named in problem(response, 415)["detail"]
    assert response.headers[accepted] in ("identity", "application/json")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "Application/JSON", "content-encoding": "identity"},
        {"content-type": "application/merge-patch+json"},
    ],
)
async def test_json_by_any_of_its_names_is_read(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post("/things", content=b'{"name": "n", "amount": 1}', headers=headers)
    assert response.status_code == 201


async def test_a_body_that_may_be_left_out_needs_no_type_then(client: httpx.AsyncClient) -> None:
    assert (await client.post("/lists")).json() == 0


async def test_one_bad_value_in_a_list_is_one_error(client: httpx.AsyncClient) -> None:
    async def errors(parts: list[Any]) -> list[str]:
        answer = problem(await client.post("/lists", json={"parts": parts}), 422)
        return [error["field"] for error in answer["errors"]]

    assert await errors(["x"]) == ["parts[0]"]
    assert await errors([0, 0]) == ["parts[0]", "parts[1]"]
    assert await errors([]) == ["parts"]


async def test_a_wrong_path_is_named_as_the_contract_names_it(client: httpx.AsyncClient) -> None:
    answer = problem(await client.get("/things/seven"), 422)
    assert answer["errors"][0]["field"] == "thingNumber"


async def test_a_sum_of_floats_is_refused_with_advice_to_round(client: httpx.AsyncClient) -> None:
    answer = problem(await post(client, b'{"name": "n", "amount": 692.6800000000001}'), 422)
    assert answer["errors"] == [
        {
            "field": "amount",
            "message": "must have at most two decimals: 692.6800000000001 can be rounded to 692.68",
        }
    ]


@pytest.mark.parametrize("path", ["/things/1", "/healthz", "/readyz", "/openapi.json", "/docs", "/nothing"])
async def test_head_is_answered_as_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    same = {"X-Request-Id": "r1"}
    got, head = await client.get(path, headers=same), await client.head(path, headers=same)
    assert (head.status_code, head.headers) == (got.status_code, got.headers)
    assert (int(head.headers["content-length"]), head.content) == (len(got.content), b"")


async def test_head_of_a_path_that_cannot_be_read_is_a_405(client: httpx.AsyncClient) -> None:
    assert (await client.head("/things")).status_code == 405


@pytest.mark.parametrize(
    ("path", "allowed"), [("/things/1", "GET, HEAD, PUT"), ("/things", "POST"), ("/healthz", "GET, HEAD")]
)
async def test_a_405_names_every_method_that_is_allowed(client: httpx.AsyncClient, path: str, allowed: str) -> None:
    for method in ("DELETE", "OPTIONS"):
        response = await client.request(method, path)
        assert problem(response, 405)["detail"] == f"The method is {method}, allowed are {allowed}"
        assert response.headers.get_list("allow") == [allowed]


async def test_head_of_a_stream_ends_it() -> None:
    streaming: list[str] = []

    async def ready() -> dict[str, str]:
        return {}

    async def stream() -> AsyncIterator[bytes]:
        streaming.append("begun")
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.01)
        finally:
            streaming.append("ended")

    app = create_app("test", "A test", ready, authenticator=key_authenticator())
    endpoint = requires(Permission.CATALOGUE_READ)(lambda: StreamingResponse(stream(), media_type="text/event-stream"))
    app.add_api_route("/stream", endpoint)
    async with serve(app) as url, httpx.AsyncClient(timeout=60, headers=ADMIN) as client:
        for _ in range(3):  # over one connection, which stays usable
            response = await client.head(f"{url}/stream")
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["content-type"].startswith("text/event-stream")

        async def all_ended() -> bool:
            return streaming.count("ended") == streaming.count("begun")

        await eventually(all_ended, 60, "the streams to end")


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 10 * MAX_BODY_BYTES])
async def test_a_body_over_the_limit_is_a_413(client: httpx.AsyncClient, size: int) -> None:
    problem(await post(client, b'"' + b"x" * (size - 2) + b'"'), 413)


async def test_a_body_over_the_limit_that_does_not_say_so_is_a_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 1024 + 2):
            yield b" " * 1024

    problem(await client.post("/things", content=chunks(), headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize("length", ["x", "-1", "1e9", ""])
async def test_a_length_that_is_not_a_number_is_a_4xx(server: Server, length: str) -> None:
    status = await raw_post(server, [(b"content-length", length.encode()), (b"content-type", b"application/json")])
    assert 400 <= status < 500


async def raw_post(server: Server, headers: list[tuple[bytes, bytes]]) -> int:
    """Post without an HTTP client, which would refuse to send such headers."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": "/things", "raw_path": b"/things", "query_string": b""}
    await server.app(scope | {"headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)
    return statuses[0]


async def test_a_body_at_the_limit_is_read(client: httpx.AsyncClient) -> None:
    body = b'{"name": "n", "amount": 1}'
    assert (await post(client, body + b" " * (MAX_BODY_BYTES - len(body)))).status_code == 201


async def test_paths_and_methods_that_do_not_exist_are_problems(client: httpx.AsyncClient) -> None:
    problem(await client.get("/nothing"), 404)
    problem(await client.delete("/things"), 405)
    problem(await client.get("/things/seven"), 422)


@pytest.mark.parametrize(
    ("failure", "status", "detail"),
    [
        (not_found("Order o1"), 404, "Order o1 does not exist"),
        (conflict("It is over"), 409, "It is over"),
        (invalid(("a", "is wrong")), 422, "a: is wrong"),
        (BusUnavailableError("secret detail"), 503, "RabbitMQ"),
        (AutoReconnect("secret detail"), 503, "MongoDB"),
        (OperationFailure("secret detail", code=189), 503, "MongoDB"),
        (TransientError("Order o1 is changing too quickly"), 503, "Order o1 is changing too quickly"),
    ],
)
async def test_errors_of_a_route_are_problems(
    client: httpx.AsyncClient, server: Server, failure: Exception, status: int, detail: str
) -> None:
    server.failure = failure
    response = await client.get("/failing")
    assert detail in problem(response, status)["detail"]
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


@pytest.mark.parametrize("failure", [RuntimeError("secret detail"), OperationFailure("secret detail", code=2)])
async def test_a_fault_is_logged_and_answered_with_a_500_without_details(
    client: httpx.AsyncClient, server: Server, failure: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    server.failure = failure
    response = await client.get("/failing")
    assert "secret" not in response.text
    problem(response, 500)


async def test_while_there_is_a_reason_all_but_health_and_documentation_is_refused_with_it() -> None:
    reason: list[str] = []

    async def ready() -> dict[str, str]:
        return {}

    app = create_app(
        "test", "A test", ready, authenticator=key_authenticator(), refusal=lambda _: reason[0] if reason else None
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", headers=ADMIN
    ) as client:
        assert (await client.get("/orders")).status_code == 404
        reason.append("The database is not available")
        for path in ALWAYS_SERVED - {ASYNCAPI_PATH}:  # which only the order service has
            assert (await client.get(path)).status_code == 200, path
        answer = await client.get("/orders")
        assert problem(answer, 503)["detail"] == reason[0]
        assert answer.headers["Retry-After"] == "1"
        reason.clear()
        assert (await client.get("/orders")).status_code == 404


async def test_readiness_names_what_is_down(client: httpx.AsyncClient, server: Server) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    server.down = {"mongodb": "it has no primary at the moment", "rabbitmq": "no connection"}
    answer = problem(await client.get("/readyz"), 503)
    assert answer["down"] == server.down
    assert answer["detail"] == "mongodb: it has no primary at the moment; rabbitmq: no connection"
    assert (await client.get("/healthz")).status_code == 200


async def test_a_degraded_process_is_ready_and_says_what_is_away_since_when(
    client: httpx.AsyncClient, server: Server
) -> None:
    since = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    server.outages = {"mongodb": Outage("it has no primary at the moment", since, 0)}
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    told = {"down": {"mongodb": "it has no primary at the moment"}, "since": {"mongodb": "2026-01-31T09:30:00.000Z"}}
    assert answer.json() == {"status": "degraded", **told}
    server.down = {"mongodb": "it has no primary at the moment"}
    assert problem(await client.get("/readyz"), 503).items() >= told.items()


async def test_metrics_count_by_route_and_not_by_path(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.get(f"/things/{number}")
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{method="GET",route="/things/{thing_number}",status="200"}' in text
    assert "/things/1" not in text


async def test_the_api_describes_itself(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    answers = document["paths"]["/things"]["post"]["responses"]
    named = {code: answer["$ref"].rpartition("/")[2] for code, answer in answers.items() if int(code) >= 400}
    problems = {code: document["components"]["responses"][name]["content"][PROBLEM] for code, name in named.items()}
    assert problems.keys() == {"400", "401", "403", "413", "415", "421", "422", "429", "500", "503"}
    assert all(each["schema"] == {"$ref": "#/components/schemas/Problem"} for each in problems.values())
    for code, each in problems.items():
        for name in each["examples"]:
            assert document["components"]["examples"][name]["value"]["status"] == int(code)
    assert {"type", "title", "status", "detail", "errors"} <= document["components"]["schemas"]["Problem"][
        "properties"
    ].keys()
    assert not {"413", "415"} & document["paths"]["/things/{thing_number}"]["get"]["responses"].keys()
    assert not {"413", "415", "422"} & document["paths"]["/healthz"]["get"]["responses"].keys()
    assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}


async def test_the_description_of_an_amount_allows_its_own_example(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    amount = document["components"]["schemas"]["Thing"]["properties"]["amount"]
    assert (amount["type"], amount["examples"]) == ("number", [19.99])
    assert "multipleOf" not in amount  # no binary floating-point number is a multiple of 0.01
    assert "two decimals" in amount["description"]


EVERYWHERE = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/viewer.js", "/things/1", "/nothing")


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_a_foreign_host_gets_no_answer(client: httpx.AsyncClient, path: str) -> None:
    answer = problem(await client.get(path, headers={"Host": "evil.example:3011"}), 421)
    assert "'evil.example:3011'" in answer["detail"]
    assert "ORDERSAGA_HTTP_NAMES" in answer["detail"]
    assert (await client.get(path, headers={"Host": "shop.example:3011"})).status_code != 421


async def test_a_post_under_a_foreign_host_does_nothing(client: httpx.AsyncClient) -> None:
    problem(await post(client, b'{"name": "n", "amount": 1}', Host="evil.example"), 421)


async def test_a_second_host_header_is_checked_too(server: Server) -> None:
    hosts = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert await raw_post(server, [*hosts, (b"content-type", b"application/json")]) == 421


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=["image", "fetch", "frame", "origin", "sandbox"],
)
async def test_another_site_gets_no_answer(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    assert "another site" in problem(await client.get(path, headers=headers), 403)["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Origin": "http://evil.example", "Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_a_form_on_another_site_changes_nothing(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await client.post("/things", content=b'{"name": "n", "amount": 1}', headers=headers), 403)


async def test_a_link_on_another_site_opens_only_the_page_about_the_api(client: httpx.AsyncClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await client.get("/docs", headers=link)).status_code == 200
    problem(await client.get("/things/1", headers=link), 403)


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_every_answer_forbids_caches_guesses_and_frames(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["cache-control"] == ("max-age=3600" if path == "/docs/viewer.js" else "no-store")
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert headers.get_list("content-security-policy") == [policy]


async def test_a_fault_forbids_caches_guesses_and_frames_too(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/failing")).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_the_page_about_the_api_loads_only_its_own_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    loaded = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert loaded == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/viewer.js"]
    for file in loaded:
        assert (await client.get(f"/{file}")).status_code == 200
    problem(await client.get("/docs/index.html"), 404)
