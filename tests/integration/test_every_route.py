"""Every route that the APIs describe answers numbers of any size, and refuses other hosts and sites."""

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from shared.services import SERVICES
from tests.support.processes import Stack, run_stack
from tests.support.servers import delete_topology
from tests.support.simulators import Simulator, run_simulator

NAMES = tuple(SERVICES)

EXTREMES = (0, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, 1e308)

CURSORS = [key for n in EXTREMES if abs(n) >= 2**53 for key in ([n], [n, ""], [n, "", ""])]

TEXTS = ("x1", "USD", "00:00", "slot:1893456000", "2030-01-01T00:00:00Z", "192.0.2.1", "ann@example.org")
"""Values for texts: the first that a description allows is sent."""


class Api(NamedTuple):
    """One process's routes."""

    url: str
    document: dict[str, Any]


class Request(NamedTuple):
    """A request with one extreme value, and the route that it is for."""

    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]
    documented: dict[str, Any]
    body: Any = None


@pytest.fixture(scope="module")
async def simulator() -> AsyncIterator[Simulator]:
    async with run_simulator() as found:
        yield found


@pytest.fixture(scope="module")
async def stack(servers: Any, simulator: Simulator) -> AsyncIterator[Stack]:
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    settings = {**simulator.settings, "credentials_key": key, "webhook_key": key}
    async with run_stack(servers.mongodb_url, servers.amqp_url, "t-extremes", **settings) as running:
        await running.start(*NAMES)
        yield running
    await delete_topology(servers.amqp_url)


async def read_api(client: httpx.AsyncClient, url: str) -> Api:
    return Api(url, (await client.get(f"{url}/openapi.json")).json())


@pytest.mark.parametrize("service", NAMES)
async def test_a_service_answers_every_number_at_every_place(stack: Stack, service: str) -> None:
    await put_to_the_test(stack.client, await read_api(stack.client, stack.url(service)))


async def test_the_simulator_answers_every_number_at_every_place(simulator: Simulator) -> None:
    async with httpx.AsyncClient(auth=(simulator.username, simulator.password), timeout=60) as client:
        await put_to_the_test(client, await read_api(client, simulator.url))
        await simulator.free()
        await simulator.purchases()


@pytest.mark.parametrize("service", NAMES)
async def test_a_service_has_the_same_manners_on_every_route(stack: Stack, service: str) -> None:
    await assert_manners(stack.client, await read_api(stack.client, stack.url(service)))


async def test_the_simulator_has_the_same_manners_on_every_route(simulator: Simulator) -> None:
    async with httpx.AsyncClient(auth=(simulator.username, simulator.password), timeout=60) as client:
        await assert_manners(client, await read_api(client, simulator.url))


async def assert_manners(client: httpx.AsyncClient, api: Api) -> None:
    async def status(method: str, **headers: str) -> int:
        async with client.stream(method, url, headers=headers, content=content) as answer:
            return answer.status_code

    for method, template, operation in operations(api.document):
        url = api.url + re.sub(r"\{\w+\}", "x1", template)
        content = None if method == "GET" else b"{}"
        assert await status(method, Host="evil.example") == 421, url
        assert await status(method, **{"Sec-Fetch-Site": "same-site"}) == 403, url
        if content:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            assert await status(method, **form) == 415, url
        assert ("415" in operation["responses"]) == (content is not None), url
        if method == "GET":
            assert await status("HEAD") == await status("GET"), url


async def put_to_the_test(client: httpx.AsyncClient, api: Api) -> None:
    """Send all extreme requests; then read all lists, as what was let in must not spoil them."""
    sent = 0
    for request in [*extreme_requests(api.document), *plain_lists(api.document)]:
        # By hand: an event stream is not read to its end.
        content = None if request.body is None else json.dumps(request.body).encode()
        headers = request.headers | ({"content-type": "application/json"} if content else {})
        async with client.stream(
            request.method, api.url + request.path, params=request.parameters, headers=headers, content=content
        ) as answer:
            assert answer.status_code != 500, request
            described = request.documented[str(answer.status_code)]
            assert required_headers(api.document, described) <= answer.headers.keys(), request
            media_type = answer.headers["content-type"].partition(";")[0]
            assert media_type in described["content"] or answer.status_code < 400, request
        sent += 1
    assert sent > len(EXTREMES)


def required_headers(document: dict[str, Any], answer: dict[str, Any]) -> set[str]:
    declared = document["components"]["headers"]
    return {name.lower() for name in answer.get("headers", ()) if declared[name].get("required")}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All but /readyz, whose answer depends on how fast the servers are."""
    for path, methods in document["paths"].items():
        if path == "/readyz":
            continue
        for method, operation in methods.items():
            yield method.upper(), re.sub(r"\{slot_id\}", "slot:1893456000", path), operation


def extreme_requests(document: dict[str, Any]) -> Iterator[Request]:
    for method, template, operation in operations(document):
        path = re.sub(r"\{\w+\}", "x1", template)
        body = example(document, schema_of_body(operation)) if "requestBody" in operation else None
        for place, name, value in extreme_parameters(document, operation):
            text = value if isinstance(value, str) else json.dumps(value)
            yield Request(
                method,
                template.replace(f"{{{name}}}", text) if place == "path" else path,
                {name: text} if place == "query" else {},
                {name: text} if place == "header" else {},
                documented_answers(document, operation),
                body,
            )
        for changed in with_extremes(document, schema_of_body(operation), body):
            yield Request(method, path, {}, {}, documented_answers(document, operation), changed)


def extreme_parameters(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for parameter in operation.get("parameters", ()):
        place, name = parameter["in"], parameter["name"]
        if name == "cursor":
            for key in CURSORS:
                yield place, name, urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")
        elif is_number(document, parameter["schema"]):
            for value in EXTREMES:
                yield place, name, value


def plain_lists(document: dict[str, Any]) -> Iterator[Request]:
    for method, path, operation in operations(document):
        if method == "GET" and "{" not in path:
            yield Request(method, path, {}, {}, documented_answers(document, operation))


def documented_answers(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """Return the answers of an operation by status, with references resolved."""
    named = document["components"]["responses"]
    answers = operation["responses"].items()
    return {code: named[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer for code, answer in answers}


def schema_of_body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    schema: dict[str, Any] = content.get("application/json", {}).get("schema", {})
    return schema


def alternatives(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a schema, with references resolved."""
    if "$ref" in schema:
        return alternatives(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return [found for one in schema["anyOf"] for found in alternatives(document, one)]
    return [schema]


def is_number(document: dict[str, Any], schema: dict[str, Any]) -> bool:
    return any(one.get("type") in ("integer", "number") for one in alternatives(document, schema))


def example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """A value that the schema allows, with all its fields."""
    first = alternatives(document, schema)[0]
    if "const" in first or "enum" in first:
        return first.get("const", first.get("enum", [None])[0])
    match first.get("type"):
        case "object":
            return {name: example(document, one) for name, one in first.get("properties", {}).items()}
        case "array":
            return [example(document, first.get("items", {}))]
        case "integer" | "number":
            return first.get("minimum", 1)
        case "boolean":
            return True
        case _:
            return next(text for text in TEXTS if re.search(first.get("pattern", ""), text))


def with_extremes(document: dict[str, Any], schema: dict[str, Any], body: Any) -> Iterator[Any]:
    """The body with each extreme at each of its numbers, one at a time."""
    for one in alternatives(document, schema):
        match one.get("type"):
            case "integer" | "number":
                yield from EXTREMES
            case "array" if isinstance(body, list):
                for changed in with_extremes(document, one.get("items", {}), body[0]):
                    yield [changed]
            case "object" if isinstance(body, dict):
                for name, field in one.get("properties", {}).items():
                    for changed in with_extremes(document, field, body[name]):
                        yield {**body, name: changed}
