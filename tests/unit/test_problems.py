"""Problem types: each has a stable name and a page, and every answer names its request."""

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from shared.access.middleware import requires
from shared.access.permissions import Permission
from shared.http import ProblemError, add_routes, create_app, new_router
from shared.problems import CONFLICT, PROBLEM_TYPES, general_type
from tests.support.access import ADMIN, key_authenticator
from tests.support.problem_page import PAGE, redrawn

ROOT = Path(__file__).parents[2]
MADE_HERE = re.compile(r"[0-9a-f]{16}")


@pytest.fixture
def app() -> FastAPI:
    async def nothing_is_down() -> dict[str, str]:
        return {}

    return create_app("test", "A test", nothing_is_down, authenticator=key_authenticator())


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=ADMIN) as client:
        yield client


def test_the_page_of_the_docs_is_current() -> None:
    page = (ROOT / PAGE).read_text()
    assert redrawn(page) == page, "run `make docs`"
    assert set(re.findall(r"^### `([a-z-]+)`", page, re.MULTILINE)) == PROBLEM_TYPES.keys()


def test_types_are_named_alike_and_apart() -> None:
    assert len({each.title for each in PROBLEM_TYPES.values()}) == len(PROBLEM_TYPES)
    for name, each in PROBLEM_TYPES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert each.uri == f"/problems/{name}"
        assert each.meaning.endswith(".")
        assert each.status.value >= 400


def test_every_status_that_a_route_may_raise_has_a_type() -> None:
    raised = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 429, 431, 500, 503, 504)
    assert all(general_type(HTTPStatus(status)) for status in raised)
    assert {each.status for each in PROBLEM_TYPES.values()} == {HTTPStatus(status) for status in raised}


async def test_the_type_of_a_problem_leads_to_its_page_without_a_credential(client: httpx.AsyncClient) -> None:
    problem = (await client.get("/nothing")).json()
    assert problem["type"] == "/problems/unknown-path"
    page = await client.get(problem["type"], headers={"Authorization": ""})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert problem["title"] in page.text
    assert (await client.get("/problems/none-such", headers=ADMIN)).status_code == 404


@pytest.mark.parametrize(
    ("path", "headers", "type_"),
    [
        ("/me", {"Authorization": "Bearer osk_no"}, "credential-invalid"),
        ("/me", {"Host": "evil.example"}, "unknown-host"),
        ("/me", {"Sec-Fetch-Site": "cross-site"}, "forbidden"),
        ("/stands/in/the/way", {}, "conflict"),
        ("/fails", {}, "internal-error"),
    ],
)
async def test_every_answer_and_its_problem_name_the_request(
    app: FastAPI, client: httpx.AsyncClient, path: str, headers: dict[str, str], type_: str
) -> None:
    router = new_router("tests")
    router.add_api_route("/stands/in/the/way", _conflict)
    router.add_api_route("/fails", _fail)
    add_routes(app.router, router)
    answer = await client.get(path, headers=headers)
    problem = answer.json()
    assert problem["type"] == f"/problems/{type_}"
    assert problem["title"] == PROBLEM_TYPES[type_].title
    assert answer.headers.get_list("x-request-id") == [problem["requestId"]]
    assert MADE_HERE.fullmatch(problem["requestId"])
    named = await client.get(path, headers={**headers, "X-Request-Id": "from-the-shop.7"})
    assert named.headers["x-request-id"] == named.json()["requestId"] == "from-the-shop.7"


async def test_a_missing_credential_is_told_from_a_wrong_one(client: httpx.AsyncClient) -> None:
    del client.headers["authorization"]
    assert (await client.get("/me")).json()["type"] == "/problems/credential-missing"


async def test_an_answer_that_is_no_problem_names_its_request_too(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"X-Request-Id": "from-the-shop.7"})
    assert answer.headers.get_list("x-request-id") == ["from-the-shop.7"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "ä".encode("latin-1")])
async def test_a_strange_id_is_replaced(client: httpx.AsyncClient, given: str | bytes) -> None:
    answer = await client.get(
        "/healthz", headers=[(b"X-Request-Id", given.encode() if isinstance(given, str) else given)]
    )
    assert MADE_HERE.fullmatch(answer.headers["x-request-id"])


@requires(Permission.CATALOGUE_READ)
async def _conflict() -> None:
    raise ProblemError(HTTPStatus.CONFLICT, "It is in the way", kind=CONFLICT)


@requires(Permission.CATALOGUE_READ)
async def _fail() -> None:
    raise RuntimeError("a defect")
