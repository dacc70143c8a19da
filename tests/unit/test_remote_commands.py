"""Commands with ORDERSAGA_URL: which ones work so, and what a console that refuses or fails looks like to them."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from operations import cli
from operations.commands.dead_letters import export as dead_letters_export
from operations.commands.orders import remote_desk
from operations.commands.orders.desk import Acting
from operations.commands.orders.failures import NothingToDoError
from operations.commands.orders.remote_desk import BY_ID, RemoteDesk
from operations.commands.permission import NotPermittedError, require_permission
from operations.commands.remote import api as remote_api
from operations.commands.remote.api import OperationsApi, RefusedError, open_api
from operations.commands.remote.reach import REFUSALS, REMOTE, WITHOUT_STACK, refusal_of
from operations.dead_letters.filters import Filters
from operations.dead_letters.letter_json import letter_as_json, letter_from_json
from operations.errors import CommandError, UnreachableError
from operations.impact.impact import impact_from_json, impact_of
from operations.order_actions.actions import ORDER_ACTIONS
from operations.order_actions.search import OrderSearch
from operations.settings import RemoteStack, locate_broker, locate_stack, remote_stack
from operations.timeline.timeline import TimelineStep, step_from_json
from shared.access.permissions import Permission
from shared.clock import utc_now
from shared.cursors import time_key, write_cursor
from shared.paging import after_time
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
    assert remote_stack({"ORDERSAGA_URL": "http://localhost:3012"}) == RemoteStack("http://localhost:3012")
    for readable in ("http://console.example.org", "http://10.0.0.7:3012"):
        with pytest.raises(UnreachableError, match=r"ORDERSAGA_URL=.* is not valid: it must begin with https://"):
            remote_stack({"ORDERSAGA_URL": readable, "ORDERSAGA_API_KEY": "osk_secret"})
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


LOST = "may have been carried out: look before you repeat it"


def test_a_lost_answer_to_an_act_with_a_key_is_said_too() -> None:
    console = Failing(*[httpx.ReadTimeout("x")] * 3)
    with pytest.raises(UnreachableError, match=LOST):
        ask(console, lambda api: api.post("bulk-actions", "retry", key="k1"))
    for work in (lambda api: api.get("orders"), lambda api: api.post("replays", only_asks=True)):
        with pytest.raises(UnreachableError) as error:
            ask(Failing(*[httpx.ReadTimeout("x")] * 3), work)
        assert "carried out" not in str(error.value)


@pytest.mark.parametrize(
    ("handler", "perhaps"),
    [
        (lambda _: httpx.Response(502, text="Bad gateway"), True),
        (problem(500, "An error"), True),
        (problem(503, "Outcome unknown: the order service did not answer in time"), True),
        (problem(503, "Not done: the order service does not answer"), False),
        (problem(503, "It starts", {"Retry-After": "1"}), False),
    ],
)
def test_a_failure_of_a_server_may_have_done_the_act(handler: Handler, perhaps: bool) -> None:
    with pytest.raises(UnreachableError) as error:
        ask(handler, lambda api: api.post("replays", body={}))
    assert (LOST in str(error.value)) == perhaps


def test_a_limit_of_requests_is_waited_for_while_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)
    limited = [httpx.Response(429, headers={"Retry-After": "60"})] * 5
    assert ask(Failing(*limited), lambda api: api.get("dead-letters")) == {"done": True}
    assert waited == [60.0] * 5


def test_a_console_that_starts_anew_is_waited_for_while_reading() -> None:
    gone = [httpx.ConnectError("All connection attempts failed")] * 5 + [httpx.Response(502)] * 5
    console = Failing()

    async def work(api: OperationsApi) -> Any:
        await api.get("bulk-actions", "b1")
        console.failures = list(gone)
        return await api.get("bulk-actions", "b1")

    assert ask(console, work) == {"done": True}
    at_once = Failing(*gone)
    with pytest.raises(UnreachableError):
        ask(at_once, lambda api: api.get("orders"))
    assert len(at_once.requests) == 1


# --- Actions on many orders. ---

SELECTED = {"orders": 1, "customers": 1, "amounts": {}, "leftOut": 0, "selection": "abc", "actionId": "b1"}
NAMED = Acting(ORDER_ACTIONS["retry"], OrderSearch(ids=("o1",)), {}, 10.0)


class Acts:
    """A console that answers dry runs, and then each request to act with the next of these."""

    def __init__(self, *answers: Exception | httpx.Response, selected: dict[str, Any] = SELECTED) -> None:
        self.answers = list(answers)
        self.selected = selected
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        self.keys.append(request.headers["Idempotency-Key"])
        if asked.get("dryRun"):
            return httpx.Response(200, json=self.selected)
        assert asked["expectedSelection"] == "abc"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def bulk(status: str) -> httpx.Response:
    return httpx.Response(202, json={"id": "b1", "status": status, "total": 1, "open": 1})


async def act(api: OperationsApi) -> Any:
    desk = RemoteDesk(api)
    started = await desk.start(NAMED, await desk.choose(NAMED), "x")
    return started if started["id"] is not None else await desk.results(started)


def test_an_action_whose_answer_is_lost_can_be_followed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Acts(*[httpx.ReadTimeout("x")] * 3)
    with pytest.raises(UnreachableError, match=LOST) as error:
        ask(console, act)
    assert "`ordersaga orders resume b1` shows whether it has begun" in str(error.value)
    assert "asks for action b1" in capsys.readouterr().err
    assert len(console.keys) == 4
    assert len(set(console.keys)) == 1


def test_an_action_that_starts_is_asked_for_again_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_desk, "POLL_SECONDS", 0.0)
    console = Acts(bulk("starting"), bulk("starting"), bulk("running"))
    assert ask(console, act)["status"] == "running"
    assert len(set(console.keys)) == 1


def test_a_conflict_alone_means_that_there_is_nothing_to_do() -> None:
    with pytest.raises(NothingToDoError, match="others match now"):
        ask(Acts(problem(409, "others match now")(httpx.Request("POST", URL))), act)
    with pytest.raises(RefusedError, match="needs orders:retry"):
        ask(Acts(problem(403, "This needs orders:retry")(httpx.Request("POST", URL))), act)


def test_orders_of_which_none_is_possible_are_listed_as_failed() -> None:
    shown, items = ask(Acts(selected=SELECTED | {"orders": 0}), act)
    assert (shown["total"], shown["failed"], shown["done"], shown["open"]) == (1, 1, 0, 0)
    assert [(item["orderId"], item["outcome"]) for item in items] == [("o1", "failed")]


# --- Permissions. ---


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (httpx.Response(200, json=["no"]), UnreachableError, "no service answers that could confirm it"),
        (httpx.Response(200, json={"ok": True}), UnreachableError, "no service answers that could confirm it"),
        (httpx.Response(404, json={"error": "x"}), UnreachableError, "no service answers that could confirm it"),
        (httpx.Response(401, json={"detail": "unknown"}), NotPermittedError, "`ordersaga keys create"),
        (httpx.Response(403, json={}), NotPermittedError, "status 403"),
        (httpx.Response(429, json={"detail": "Too many"}, headers={"Retry-After": "7"}), UnreachableError, "in 7 s"),
        (httpx.Response(200, json={"name": "ann", "permissions": {}}), NotPermittedError, "ann does not have it"),
    ],
)
def test_what_answers_about_permissions_may_be_anything(
    answer: httpx.Response, kind: type[CommandError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(*_: Any, **__: Any) -> httpx.Response:
        return answer

    monkeypatch.setattr(httpx.AsyncClient, "get", get)
    with pytest.raises(kind, match=text):
        asyncio.run(require_permission(HERE, Permission.ORDERS_READ, "this"))


# --- Files. ---


class Letters:
    """A desk with one letter, which may fail after it."""

    stack = HERE

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    async def resolve(self, filters: Filters) -> Filters:
        return filters

    async def export(self, _filters: Filters, *, masked: bool) -> Any:
        yield {"id": "l1", "masked": masked}
        if self.fails:
            raise UnreachableError("the console cannot be reached")


def test_an_export_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "letters.json"
    file.write_text("the last export")

    def export(fails: bool) -> Any:
        monkeypatch.setattr(dead_letters_export, "run", lambda work: asyncio.run(work(Letters(fails))))
        words = ["dead-letters", "export", "--all", "--json", "-o", str(file)]
        return CliRunner().invoke(cli.build_application(words), words)

    assert isinstance(export(fails=True).exception, UnreachableError)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("the last export", [file])
    assert export(fails=False).exit_code == 0
    assert json.loads(file.read_text())["items"] == [{"id": "l1", "masked": True}]


def test_a_data_directory_and_a_console_are_not_both_given() -> None:
    words = ["status", "--data-dir", "elsewhere"]
    result = CliRunner(env={"ORDERSAGA_URL": URL, "COLUMNS": "300"}).invoke(cli.build_application(words), words)
    assert (result.exit_code, "ORDERSAGA_URL names another" in result.output) == (2, True), result.output


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


def test_more_ids_than_a_request_takes_are_read_in_parts() -> None:
    ids = [f"o{number:03}" for number in range(250)]
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    # The parts are not in the order of time.
    times = {each: begin + timedelta(seconds=int(each[:0:-1])) for each in ids}
    orders = [{"orderId": each, "createdAt": at.isoformat()} for each, at in times.items()]

    def page(request: httpx.Request) -> httpx.Response:
        asked, size = request.url.params.get_list("orderId"), int(request.url.params["limit"])
        assert len(asked) <= 100
        found = [order for order in orders if order["orderId"] in asked]
        found.sort(key=BY_ID.key, reverse=True)
        total = len(found)
        if (after := after_time(request.url.params.get("cursor"))) is not None:
            found = [order for order in found if BY_ID.key(order) < after]
        more = write_cursor(time_key(*BY_ID.key(found[size - 1]))) if len(found) > size else None
        shown = {"items": found[:size], "nextCursor": more, "total": total, "totalIsExact": True}
        return httpx.Response(200, json=shown)

    expected, seen, cursor = sorted(ids, key=lambda each: (times[each], each), reverse=True), [], None
    for size in (120, 120, 10):
        found = ask(page, partial(listed, ids, size, cursor))
        assert (len(found["items"]), found["total"], found["totalIsExact"]) == (size, 250, True)
        seen += [item["orderId"] for item in found["items"]]
        cursor = found["nextCursor"]
    assert (seen, cursor) == (expected, None)


async def listed(ids: list[str], limit: int, cursor: str | None, api: OperationsApi) -> Any:
    return await api.pages_by_id("orders", ids, BY_ID, limit=limit, cursor=cursor)


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
