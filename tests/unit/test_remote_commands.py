"""Commands with ORDERSAGA_URL: which ones work so, and what a console that refuses or fails looks like to them."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from operations import cli
from operations.commands.remote import api as remote_api
from operations.commands.remote.api import OperationsApi, RefusedError, open_api
from operations.commands.remote.reach import REFUSALS, REMOTE, WITHOUT_STACK, refusal_of
from operations.dead_letters.letter_json import letter_as_json, letter_from_json
from operations.errors import CommandError, UnreachableError
from operations.impact.impact import impact_from_json, impact_of
from operations.settings import RemoteStack, locate_broker, locate_stack, remote_stack
from operations.timeline.timeline import TimelineStep, step_from_json
from shared.clock import utc_now
from tests.support.remote_commands import redrawn
from tests.unit.test_command_line import every_command

DOCS = Path(__file__).parents[2] / "docs/command-line.md"
URL = "http://127.0.0.1:1"
HERE = RemoteStack("https://console.example.org", "osk_secret")
PATHS = [" ".join(path) for path, _ in every_command()]


# --- Which commands. ---


def test_every_command_is_declared_once() -> None:
    for path in PATHS:
        refusal_of(path)
    groups = {path.partition(" ")[0] for path in PATHS}
    assert set(PATHS) >= REMOTE | WITHOUT_STACK
    assert groups | set(PATHS) >= set(REFUSALS)
    assert not any(
        path in REMOTE or path.partition(" ")[0] in {p.partition(" ")[0] for p in REMOTE} for path in REFUSALS
    )


@pytest.mark.parametrize("path", sorted(path for path in PATHS if path not in REMOTE | WITHOUT_STACK))
def test_a_command_that_needs_the_servers_refuses_before_it_does_anything(path: str) -> None:
    words = [*path.split(), *ARGUMENTS.get(path, ())]
    result = CliRunner(env={"ORDERSAGA_URL": URL}).invoke(cli.build_application(words), words)
    assert result.exit_code == 2, (result.output, result.exception)
    refusal = refusal_of(path)
    assert refusal is not None
    printed = " ".join(result.output.split())
    assert f"`ordersaga {path}` does not act on the stack of ORDERSAGA_URL: {refusal.why}." in printed


ARGUMENTS = {
    "accounts assign": ["--owner", "shop", "--all"],
    "accounts repair": ["--all"],
    "accounts show": ["bank:b1"],
    "accounts statement": ["bank:b1"],
    "archive": ["--older-than", "30d", "--to", "archive"],
    "backup": ["backup"],
    "cleanup": ["--older-than", "30d"],
    "database prepare": ["--secrets", "secrets"],
    "erase": ["--user", "u1", "--yes", "--why", "x"],
    "events export": ["--out", "events.jsonl"],
    "keys create": ["--role", "viewer", "--owner", "shop"],
    "keys revoke": ["12345678"],
    "keys rotate": ["12345678"],
    "restore": ["."],
}


def test_the_help_of_a_refused_command_is_shown() -> None:
    result = CliRunner(env={"ORDERSAGA_URL": URL}).invoke(cli.build_application(["backup"]), ["backup", "--help"])
    assert result.exit_code == 0


def test_the_page_lists_the_commands() -> None:
    assert redrawn(DOCS.read_text()) == DOCS.read_text(), "run `make docs`"


# --- Which stack. ---


def test_a_stack_of_servers_is_not_located_beside_a_console() -> None:
    given = {"ORDERSAGA_URL": URL, "ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "ORDERSAGA_AMQP_URL": "amqp://x"}
    for locate in (locate_stack, locate_broker):
        with pytest.raises(UnreachableError, match="ORDERSAGA_URL is set"):
            locate(None, given)


def test_the_address_and_the_key_are_read() -> None:
    assert remote_stack({}) is None
    found = remote_stack({"ORDERSAGA_URL": f"{URL}/api/v1/", "ORDERSAGA_API_KEY": "osk_secret"})
    assert found == RemoteStack(URL, "osk_secret")
    assert "osk_secret" not in repr(found)
    for wrong in ("console:3012", "ftp://console", "https://user:secret@console"):
        with pytest.raises(UnreachableError, match=r"ORDERSAGA_URL=.* is not valid: allowed is https://host") as error:
            remote_stack({"ORDERSAGA_URL": wrong})
        assert "secret" not in str(error.value)


# --- Errors in words. ---


Handler = Callable[[httpx.Request], httpx.Response]


def ask(handler: Handler, work: Callable[[OperationsApi], Any], stack: RemoteStack = HERE) -> Any:
    async def asked() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), headers=stack.headers) as client:
            return await work(OperationsApi(stack, client))

    return asyncio.run(asked())


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Handler:
    kind = {"Content-Type": "application/problem+json"}
    content = {"type": "about:blank", "title": "A title", "status": status, "detail": detail, **more}
    return lambda _: httpx.Response(status, json=content, headers=kind | (headers or {}))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_api, "PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("handler", "kind", "text"),
    [
        (problem(403, "This needs orders:decide, which x does not have"), RefusedError, "This needs orders:decide"),
        (problem(404, "Order x1 does not exist"), RefusedError, r"^Order x1 does not exist$"),
        (problem(409, "Not done: it is settled"), RefusedError, r"^Not done: it is settled$"),
        (problem(404, "The path /api/v1/consumers does not exist"), RefusedError, "of an earlier release"),
        (problem(404, "This path does not exist"), RefusedError, "it is another service, or"),
        (problem(405, "Only GET"), RefusedError, "of an earlier release"),
        (
            problem(422, "wrong", errors=[{"field": "rate", "message": "must be at least 1"}]),
            RefusedError,
            "refuses the request: rate: must be at least 1",
        ),
        (problem(429, "slower", {"Retry-After": "3600"}), RefusedError, "try again in 3600 seconds"),
        (problem(429, "slower", {"Retry-After": "0"}), RefusedError, "too many requests"),
        (problem(503, "MongoDB cannot be reached"), UnreachableError, "cannot do it now: MongoDB cannot be reached"),
        (problem(500, "An error"), UnreachableError, "cannot do it now: An error"),
        (lambda _: httpx.Response(502, text="Bad gateway"), UnreachableError, "cannot reach the console: status 502"),
        (lambda _: httpx.Response(200, text="<html>"), RefusedError, "is no operations API"),
        (lambda _: httpx.Response(404, text="nothing here"), RefusedError, "is no operations API"),
        (
            lambda _: httpx.Response(200, content=b"{", headers={"Content-Type": "application/json"}),
            RefusedError,
            "is no operations API",
        ),
        (
            lambda _: httpx.Response(301, headers={"Location": "https://other.example.org"}),
            RefusedError,
            "leads to https://other.example.org: ORDERSAGA_URL must be the last address",
        ),
    ],
)
def test_an_answer_that_is_no_success_is_put_into_words(handler: Handler, kind: type[CommandError], text: str) -> None:
    with pytest.raises(kind, match=text) as error:
        ask(handler, lambda api: api.get("orders"))
    assert "osk_secret" not in str(error.value)


def test_a_refused_key_says_how_to_get_one() -> None:
    refused = problem(401, "The request needs the header Authorization: Bearer")
    for stack, text in (
        (RemoteStack("https://console.example.org"), "ORDERSAGA_URL needs a key, in ORDERSAGA_API_KEY or in a file: "),
        (HERE, "does not accept the key in ORDERSAGA_API_KEY"),
    ):
        with pytest.raises(RefusedError, match=re.escape(text)) as error:
            ask(refused, lambda api: api.get("orders"), stack)
        assert "`ordersaga keys create --role operator" in str(error.value)


def test_an_invalid_value_is_wrong_usage() -> None:
    async def work() -> None:
        async with open_api(HERE):
            raise remote_api.InvalidRequestError("…", [("cursor", "is not a nextCursor of this list")])

    with pytest.raises(typer.BadParameter, match="is not a nextCursor of this list") as error:
        asyncio.run(work())
    assert error.value.param_hint == "--cursor"


class Failing:
    """A console whose first answers fail."""

    def __init__(self, *failures: Exception | httpx.Response) -> None:
        self.failures = list(failures)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.failures:
            return httpx.Response(200, json={"done": True})
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        return failure


def test_what_may_be_repeated_is_repeated_with_the_same_key() -> None:
    for failure in (httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), httpx.Response(503)):
        console = Failing(failure)
        assert ask(console, lambda api: api.post("bulk-actions", "retry", body={}, key="k1")) == {"done": True}
        assert [request.headers["Idempotency-Key"] for request in console.requests] == ["k1", "k1"]
    limited = Failing(httpx.Response(429, headers={"Retry-After": "0"}))
    assert ask(limited, lambda api: api.post("replays", body={})) == {"done": True}


def test_an_act_without_a_key_is_sent_once_and_a_lost_answer_is_said() -> None:
    console = Failing(httpx.ReadTimeout("x"))
    with pytest.raises(UnreachableError, match="may have been carried out: look before you repeat it"):
        ask(console, lambda api: api.post("replays", body={}))
    assert len(console.requests) == 1


def test_nothing_that_listens_is_said_at_once() -> None:
    console = Failing(httpx.ConnectError("All connection attempts failed"))
    with pytest.raises(UnreachableError, match=r"console\.example\.org cannot be reached") as error:
        ask(console, lambda api: api.post("replays", body={}))
    assert "carried out" not in str(error.value)
    assert len(console.requests) == 1


def test_pages_are_put_together_up_to_the_limit() -> None:
    sizes: list[int] = []

    def page(request: httpx.Request) -> httpx.Response:
        size, start = int(request.url.params["limit"]), int(request.url.params.get("cursor", 0))
        sizes.append(size)
        shown = list(range(start, min(start + size, 250)))
        following = str(start + size) if start + size < 250 else None
        return httpx.Response(200, json={"items": shown, "nextCursor": following, "total": 250})

    found = ask(page, lambda api: api.pages("orders", limit=120))
    assert (found["items"], found["nextCursor"], sizes) == (list(range(120)), "120", [100, 20])
    everything = ask(page, lambda api: api.pages("orders", limit=1000))
    assert (len(everything["items"]), everything["nextCursor"]) == (250, None)


# --- What comes from JSON is what was there. ---


def test_documents_are_read_back() -> None:
    now = utc_now()
    letter = {
        "_id": "l1",
        "lastFailedAt": now,
        "headers": {"at": "noon", "x-at": "2026-01-01T00:00:00.000Z"},
        "body": b"\xff",
        "edits": [{"at": now, "by": "ann", "body": b"{}"}],
        "replays": [{"replay": "r1", "at": now, "outcomeAt": None, "error": {"type": "E", "message": "m"}}],
        "discarded": None,
    }
    read = letter_from_json(letter_as_json(letter))
    assert read == letter | {"current": b"{}"}
    order = {"totalAmount": 1999, "currency": "EUR", "userId": "u1", "status": "PENDING", "settled": False}
    impact = impact_of([order | {"deadline": now}], unknown=2)
    assert impact_from_json(impact.as_json()).as_json() == impact.as_json()
    step = TimelineStep(now, "order", "wait", "waits", outcome="open", due=now, letter="l1")
    assert step_from_json(step.as_json()) == step
