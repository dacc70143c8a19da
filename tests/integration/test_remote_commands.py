"""The same commands on a stack and through its console alone: what they print, what they do, and how they end."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aio_pika
import pytest
from typer.testing import CliRunner
from yarl import URL

from operations import cli
from operations.commands.failures import status_of
from operations.errors import CommandError
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.services import SERVICES
from shared.tls import server_context
from shared.topology import EXCHANGE
from tests.support.access import ADMIN_KEY, KEYS
from tests.support.certificates import Certificates, Pair
from tests.support.consoles import NOWHERE
from tests.support.eventually import eventually
from tests.support.processes import SAGA_SERVICES, Stack, run_module_stack
from tests.support.proxy import Proxy
from tests.support.servers import Servers

WHY = ("--why", "the customer called")
BODY = '{"orderId": "%s", "items": "many"}'
CORRECTED = '{"orderId": "%s", "items": []}'
PATCH = '[{"op": "replace", "path": "/items", "value": []}]'
UNREACHABLE = {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "ORDERSAGA_AMQP_URL": "amqp://127.0.0.1:1/"}


class Ended(NamedTuple):
    """How a command ended, and what it printed on stdout."""

    status: int
    output: str
    everything: str = ""
    """What it printed on stderr too, such as questions."""


@dataclass
class Shop:
    """A stack with settled orders, orders that wait for a paused service, and dead letters."""

    stack: Stack
    settled: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    letters: dict[str, str] = field(default_factory=dict)
    """Ids of letters, by the order that they name."""

    async def here(self, *words: str, given: str | None = None, **environment: str) -> Ended:
        """Run a command on the servers themselves."""
        known = {n: v for n, v in self.stack.command_environment.items() if n.startswith("ORDERSAGA_")}
        return await run(*words, given=given, **known | {"ORDERSAGA_API_KEY": ADMIN_KEY} | environment)

    async def elsewhere(self, *words: str, given: str | None = None, **environment: str) -> Ended:
        """Run a command that can reach the console, and nothing else."""
        known = {service.url_variable: NOWHERE for service in SERVICES.values()} | UNREACHABLE
        known |= {"ORDERSAGA_URL": self.stack.url("console"), "ORDERSAGA_API_KEY": ADMIN_KEY}
        return await run(*words, given=given, **known | environment)


async def run(*words: str, given: str | None = None, **environment: str) -> Ended:
    """Run a command as `ordersaga` does; errors that end it are in its output."""
    runner = CliRunner(env={"ORDERSAGA_OPERATOR": "ann", "COLUMNS": "160"} | environment)
    result = await asyncio.to_thread(runner.invoke, cli.build_application(words), words, input=given)
    if isinstance(result.exception, CommandError):
        return Ended(status_of(result.exception), str(result.exception), result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout or result.output, result.output)


@pytest.fixture(scope="module")
async def shop(servers: Servers) -> AsyncIterator[Shop]:
    async with run_module_stack(servers) as stack:
        # Where the others listen by default, a stack of another test may.
        urls = {f"{name}_url": NOWHERE for name in SERVICES} | {
            f"{name}_url": stack.url(name) for name in SAGA_SERVICES
        }
        await stack.start("console", api_key=ADMIN_KEY, **urls)
        await stack.stock("p1", 1000)
        shop = Shop(stack)
        shop.settled = [await stack.place(userId="anna") for _ in range(3)]
        await stack.all_settled(shop.settled)
        paused = await shop.elsewhere("pause", "payment", "--yes", "--reason", "the gateway is being repaired")
        assert paused.status == 0, paused

        async def waits() -> bool:
            return bool((await stack.client.get(f"{stack.url('payment')}/readyz")).json().get("paused"))

        await eventually(waits, 60, "the consumer to be paused")
        shop.pending = [await stack.place(userId="bea") for _ in range(6)]
        await publish(stack, *(f"poison-{n}" for n in range(8)))

        async def recorded() -> bool:
            output = (await shop.elsewhere("dead-letters", "list", "--json", "--type", "stock.release")).output
            shop.letters = {letter["orderId"]: letter["id"] for letter in json.loads(output)["items"]}
            return len(shop.letters) == 8

        await eventually(recorded, 60, "the letters to be recorded")
        yield shop


async def publish(stack: Stack, *orders: str) -> None:
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(EXCHANGE)
        for order in orders:
            message = aio_pika.Message((BODY % order).encode(), type="stock.release", correlation_id=order)
            await exchange.publish(message, "stock.release")


# --- Reading. ---

READING = [
    "orders list",
    "orders list --json --limit 2",
    "orders list --user anna --status CONFIRMED --since 1d",
    "orders list {settled} nobodys-order",
    "orders show {settled}",
    "orders show {settled} --json",
    "orders show nobodys-order",
    "orders show nobodys-order --json",
    "order timeline poison-7",
    "dead-letters list",
    "dead-letters list --json --limit 3",
    "dead-letters list --all --order poison-7",
    "dead-letters list --type nothing",
    "dead-letters list ffffff",
    "dead-letters groups",
    "dead-letters groups --json --all",
    "dead-letters groups --since 1d --sort letters --skip 0 --inbox inventory.inbox",
    "dead-letters groups --status gone",
    "dead-letters show {letter}",
    "dead-letters show {letter} --json",
    "dead-letters show {letter} --unmasked --json",
    "dead-letters preview --all",
    "dead-letters preview {letter} --json",
    "dead-letters export {letter}",
    "dead-letters edit {letter} --dry-run --body {file}",
    "dead-letters edit {letter} --dry-run --body {file} --json",
    'dead-letters edit --all --dry-run --patch [{{"op":"replace","path":"/items","value":[]}}]',
    'dead-letters edit --all --dry-run --json --patch [{{"op":"replace","path":"/items","value":[]}}]',
    "dead-letters outcome unknown",
    "incidents --json --kind paused",
    "incidents --kind paused",
    "pauses",
    "pauses --json",
    "stock list",
    "stock list --json --limit 1",
    "stock show p1",
    "stock show p1 --json",
    "stock show nothing",
    "search {settled}",
    "search {letter} --json",
    "search p1",
    "search nothing of this name",
    "notifications list",
    "audit --results --json",
    "audit --results --limit 1",
]


@pytest.mark.parametrize("command", READING)
async def test_what_is_read_is_the_same_from_another_machine(shop: Shop, command: str, tmp_path: Any) -> None:
    body = tmp_path / "body.json"
    body.write_text(CORRECTED % "poison-7")
    known = {"settled": shop.settled[0], "letter": shop.letters["poison-7"], "file": str(body)}
    words = command.format(**known).split(" ")
    seen = await read_the_same(partial(shop.here, *words), partial(shop.elsewhere, *words))
    assert seen.output


async def read_the_same(one_way: Callable[[], Awaitable[Ended]], another: Callable[[], Awaitable[Ended]]) -> Ended:
    """Read in two ways until both give the same, and return it.

    A running stack changes between two looks: incidents and audits are recorded, and charts get new bins.
    """
    seen: list[Ended] = []

    async def same() -> bool:
        seen[:] = [await one_way(), await another()]
        return seen[0].status == seen[1].status and plain(seen[0].output) == plain(seen[1].output)

    try:
        await eventually(same, 60, "the same output")
    except AssertionError:
        assert seen[0] == seen[1]
        raise
    return seen[0]


def plain(output: str) -> str:
    """The output without the first line, which names the stack."""
    output = re.sub(r"^stack: .*\n", "", output)
    # For how long an order waits, and the bins of a chart, go on with the time.
    output = re.sub(r"(?m)^(waits for .*), for .*$", r"\1", output)
    return re.sub(r'"at": "[^"]*"', '"at"', output) if '"histogram"' in output else output


@pytest.mark.parametrize("command", ["orders list", "dead-letters list", "incidents", "stock list"])
async def test_a_wrong_cursor_is_wrong_usage(shop: Shop, command: str) -> None:
    for where in (shop.here, shop.elsewhere):
        ended = await where(*command.split(" "), "--cursor", "wrong")
        assert (ended.status, "Invalid value for --cursor" in ended.output) == (2, True), ended


async def test_the_books_are_audited_by_the_console(shop: Shop) -> None:
    seen: list[Any] = []

    async def same() -> bool:
        seen[:] = [json.loads((await where("audit", "--json")).output) for where in (shop.here, shop.elsewhere)]
        names = ("ok", "checked", "violations", "unlisted")
        return [seen[0][name] for name in names] == [seen[1][name] for name in names]

    await eventually(same, 60, "the same result")
    assert seen[1]["stack"] == {"url": shop.stack.url("console")}
    in_flight = seen[0]["information"]["inFlight"]
    assert seen[1]["information"]["inFlight"] == in_flight
    printed = await shop.elsewhere("audit")
    assert (printed.status, f"{in_flight} order" in printed.output) == (0, True), printed


async def test_the_status_says_what_is_paused(shop: Shop) -> None:
    async def said() -> bool:
        ended = await shop.elsewhere("status")
        return ended.status == 1 and "payment.inbox is paused since" in ended.output

    await eventually(said, 60, "the pause to be seen")
    state = json.loads((await shop.elsewhere("status", "--json")).output)
    assert (state["ok"], [pause["inbox"] for pause in state["paused"]]) == (False, ["payment.inbox"])


# --- Acts: the same on two equal things. ---


async def both(shop: Shop, mine: list[str], others: list[str], *words: str, **how: Any) -> tuple[Ended, Ended]:
    """Act on the first things here, and on the others from another machine; ids are made the same in the output."""
    here = await shop.here(*(word.format(*mine) for word in words), **how)
    elsewhere = await shop.elsewhere(*(word.format(*others) for word in words), **how)
    return without(here, mine), without(elsewhere, others)


def without(ended: Ended, things: list[str]) -> Ended:
    text = ended.output
    for number, thing in enumerate(things):
        text = re.sub(rf"\b{re.escape(thing)}\b", f"thing-{number}", text)
    for pattern, word in (
        (r"\b[0-9a-f]{16}\b", "act"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "time"),
        (r'"by": "[^"]*"', "by"),
    ):
        text = re.sub(pattern, word, text)
    return Ended(ended.status, plain(text))


async def test_orders_are_cancelled_and_nudged(shop: Shop) -> None:
    first, second = shop.pending[:2], shop.pending[2:4]
    here, elsewhere = await both(shop, first, second, "orders", "nudge", "{0}", "{1}", "--yes", *WHY)
    assert (here.status, here) == (0, elsewhere)
    here, elsewhere = await both(shop, first, second, "orders", "cancel", "{0}", "{1}", "--yes", "--json", *WHY)
    assert (here.status, here) == (0, elsewhere)
    assert [(await shop.stack.order(each))["status"] for each in first + second] == ["CANCELLED"] * 4
    here, elsewhere = await both(shop, [], [], "orders", "retry", "--user", "anna", "--yes", *WHY)
    assert (here.status, here) == (1, elsewhere)


async def test_a_confirmation_names_the_same_and_can_be_declined(shop: Shop) -> None:
    for where in (shop.here, shop.elsewhere):
        asked = await where("orders", "cancel", "--user", "bea", "--since", "1d", given="n\n")
        assert asked.status == 1
        assert re.search(r"Cancel \d orders of 1 customer, [\d.]+ USD\? \[y/N\]: n", asked.everything), asked
        asked = await where("dead-letters", "discard", "--order", "poison-7", given="n\n")
        assert (asked.status, "Discard 1 dead letter (0 orders of 0 customers" in asked.everything) == (1, True), asked


async def test_orders_that_are_named_and_cannot_be_acted_on_are_listed_as_failed(shop: Shop) -> None:
    words = ("orders", "cancel", shop.settled[0], shop.pending[5], "--yes", "--json", *WHY)
    ended = await shop.elsewhere(*words)
    found = json.loads(ended.output)
    assert (ended.status, found["total"], found["done"], found["failed"]) == (1, 2, 1, 1)
    assert {item["orderId"]: item["outcome"] for item in found["orders"]} == {
        shop.settled[0]: "failed",
        shop.pending[5]: "done",
    }
    stopped = await shop.elsewhere("orders", "stop", found["id"], *WHY)
    assert (stopped.status, "was over already" in stopped.output) == (1, True)
    shown = await shop.elsewhere("orders", "resume", found["id"])
    assert (shown.status, shop.pending[5] in shown.output) == (0, True)


async def test_letters_are_replayed_edited_discarded_and_restored(shop: Shop) -> None:
    first, second = ([shop.letters[f"poison-{n}"]] for n in (0, 1))
    how = ("--wait", "--yes", *WHY)
    here, elsewhere = await both(shop, first, second, "dead-letters", "replay", "{0}", *how)
    assert (here.status, here) == (1, elsewhere)
    assert "thing-0 failed again" in elsewhere.output
    for act, done in (("discard", "discarded 1\n"), ("restore", "restored 1\n")):
        here, elsewhere = await both(shop, first, second, "dead-letters", act, "{0}", "--yes", *WHY)
        assert (here.status, here, here.output) == (0, elsewhere, done)
    words = ("dead-letters", "edit", "{0}", "--patch", PATCH.replace("{", "{{").replace("}", "}}"), "--json", *how)
    here, elsewhere = await both(shop, first, second, *words)
    assert (here.status, here) == (0, elsewhere)

    first, second = (["poison-2", shop.letters["poison-2"]], ["poison-3", shop.letters["poison-3"]])
    for order, letter in (first, second):
        where = shop.here if order == "poison-2" else shop.elsewhere
        wrong = await where("dead-letters", "edit", letter, "--body", "-", "--yes", *WHY, given=BODY % order)
        assert (wrong.status, "the body is not valid:\n  items" in wrong.output) == (1, True), wrong
        right = await where("dead-letters", "edit", letter, "--body", "-", *how, given=CORRECTED % order)
        assert (right.status, "1 handled" in right.output) == (0, True), right


async def test_a_replay_needs_a_reason_from_another_machine(shop: Shop) -> None:
    asked = await shop.elsewhere("dead-letters", "replay", "--order", "poison-6", "--yes")
    assert (asked.status, "required with --yes and ORDERSAGA_URL" in " ".join(asked.output.split())) == (2, True)
    given = await shop.elsewhere("dead-letters", "replay", "--order", "poison-6", given="y\nto see\n")
    assert (given.status, "replayed 1 of 1" in given.output) == (1, True), given


async def test_rules_of_notifications_are_kept(shop: Shop) -> None:
    add = ("notifications", "add", "{0}", "--channel", "webhook", "--severity", "critical", *WHY)
    for words, status in (
        (add, 0),
        (add, 1),
        (("notifications", "disable", "{0}", *WHY), 0),
        (("notifications", "enable", "{0}", *WHY), 0),
        (("notifications", "enable", "nobodys", *WHY), 1),
        (("notifications", "test", "nobodys"), 1),
        (("notifications", "remove", "{0}", *WHY), 0),
        (("notifications", "remove", "{0}", *WHY), 1),
    ):
        here, elsewhere = await both(shop, ["night"], ["daily"], *words)
        assert (here.status, here) == (status, elsewhere), words


async def test_a_consumer_is_paused_and_resumed(shop: Shop) -> None:
    for words, status in (
        (("pause", "{0}", "--for", "30m", "--yes", "--reason", "x"), 0),
        (("resume", "{0}", "--reason", "x"), 0),
    ):
        here, elsewhere = await both(shop, ["inventory"], ["order"], *words)
        assert (here.status, here) == (status, elsewhere), words
    refused = await shop.elsewhere("pause", "inventory", "--yes", "--reason", "x", ORDERSAGA_API_KEY=KEYS[Role.VIEWER])
    assert (refused.status, "letters:decide" in refused.output) == (1, True)


async def test_stock_is_added_once_and_products_are_taken_off_sale(shop: Shop) -> None:
    for product in ("lamp", "sofa"):
        await shop.stack.stock(product, 5)
    restock = ("stock", "restock", "{0}", "20", "--key", "delivery-4711", *WHY)
    for words, given, status in (
        (restock, "n\n", 1),
        (restock, "y\n", 0),
        ((*restock, "--yes"), None, 0),
        (("stock", "off-sale", "{0}", "--yes", *WHY), None, 0),
        (("stock", "show", "{0}", "--json"), None, 0),
        (("stock", "on-sale", "{0}", *WHY), None, 0),
        (("stock", "on-sale", "{0}-that-nobody-sells", *WHY), None, 1),
    ):
        here, elsewhere = await both(shop, ["lamp"], ["sofa"], *words, given=given)
        assert (here.status, here) == (status, elsewhere), words
        if words[:2] == restock[:2] and status == 0:
            repeated = "20 units had been added to {0} before, under this key; nothing was added now"
            assert ("--yes" in words) == (repeated.format("thing-0") in here.output), here
    for where, product in ((shop.here, "lamp"), (shop.elsewhere, "sofa")):
        found = json.loads((await where("stock", "show", product, "--json")).output)
        assert (found["quantity"], found["onSale"]) == (25, True)
    asked = await shop.elsewhere("stock", "restock", "lamp", "20", *WHY, given="n\n")
    assert "Add 20 units to lamp (now 25 free)? [y/N]: n" in asked.everything
    refused = await shop.elsewhere("stock", "off-sale", "lamp", "--yes", *WHY, ORDERSAGA_API_KEY=KEYS[Role.VIEWER])
    assert (refused.status, "catalogue:write" in refused.output) == (1, True), refused
    logged = await shop.stack.client.get(f"{shop.stack.url('console')}/api/v1/actions", params={"subject": "lamp"})
    assert logged.status_code == 200
    assert [entry["why"] for entry in logged.json()["items"]].count("the customer called") >= 4


# --- Refusals. ---


async def test_the_role_of_the_key_decides(shop: Shop) -> None:
    viewer = {"ORDERSAGA_API_KEY": KEYS[Role.VIEWER]}
    for words, needed in (
        (("orders", "cancel", shop.settled[0], "--yes", *WHY), "orders:cancel"),
        (("dead-letters", "discard", "--all", "--yes", *WHY), "letters:decide"),
        (("dead-letters", "list", "--unmasked"), "letters:edit"),
        (("notifications", "remove", "night", *WHY), "webhooks:write"),
        (("audit",), "letters:decide"),
    ):
        ended = await shop.elsewhere(*words, **viewer)
        assert (ended.status, needed in ended.output) == (1, True), ended
    masked = await shop.elsewhere("dead-letters", "list", **viewer)
    assert masked.status == 0


@pytest.mark.parametrize(
    ("environment", "status", "text"),
    [
        ({"ORDERSAGA_API_KEY": "osk_wrong"}, 1, "does not accept the key in ORDERSAGA_API_KEY"),
        ({"ORDERSAGA_API_KEY": ""}, 1, "ORDERSAGA_URL needs a key, in ORDERSAGA_API_KEY or in a file: `ordersaga keys"),
        ({"ORDERSAGA_URL": NOWHERE}, 3, "cannot be reached"),
        ({"ORDERSAGA_URL": "console:3012"}, 3, "is not valid"),
    ],
)
async def test_what_prevents_a_command_is_said(shop: Shop, environment: dict[str, str], status: int, text: str) -> None:
    for words in (("orders", "list"), ("dead-letters", "groups"), ("pauses",), ("incidents",)):
        ended = await shop.elsewhere(*words, **environment)
        assert (ended.status, text in ended.output) == (status, True), ended


@asynccontextmanager
async def over_tls(shop: Shop, certificate: Pair) -> AsyncIterator[str]:
    """The console behind a server that speaks TLS with this certificate: its address."""
    context = server_context(certificate.certificate, certificate.key, None)()
    async with Proxy(URL(shop.stack.url("console"))).open(ssl=context) as proxy:
        yield str(proxy.url.with_scheme("https")).rstrip("/")


async def test_a_console_with_a_certificate_of_a_private_authority(shop: Shop, tmp_path: Path) -> None:
    ours, theirs = Certificates(tmp_path / "ours"), Certificates(tmp_path / "theirs")
    for each in (ours, theirs):
        each.directory.mkdir()
    async with over_tls(shop, ours.issue("console")) as url:
        trusting = {"ORDERSAGA_URL": url, "ORDERSAGA_TLS_CA_FILE": str(ours.ca)}
        for words in (("orders", "list"), ("stock", "show", "p1"), ("dead-letters", "groups", "--json")):
            read = await read_the_same(partial(shop.elsewhere, *words), partial(shop.elsewhere, *words, **trusting))
            assert read.status == 0, words
        acted = await shop.elsewhere("orders", "cancel", "--user", "nobody", "--yes", *WHY, **trusting)
        assert (acted.status, "no order matches" in acted.output) == (1, True), acted
        for authority in (None, theirs.ca):
            known = {"ORDERSAGA_URL": url} | ({} if authority is None else {"ORDERSAGA_TLS_CA_FILE": str(authority)})
            refused = await shop.elsewhere("orders", "list", **known)
            assert (refused.status, refused.output.count("not from a trusted CA")) == (3, 1), refused
            assert "ORDERSAGA_TLS_CA_FILE names the CAs to trust" in refused.output
        missing = await shop.elsewhere("orders", "list", **trusting | {"ORDERSAGA_TLS_CA_FILE": "/no/such/ca.pem"})
        assert (missing.status, "ca.pem cannot be read" in missing.output) == (3, True), missing
    for certificate, why in (
        (ours.issue("other", "other.example.org"), "IP address mismatch"),
        (ours.issue("old", until=utc_now() - timedelta(days=1)), "certificate has expired"),
    ):
        async with over_tls(shop, certificate) as url:
            refused = await shop.elsewhere("orders", "list", **trusting | {"ORDERSAGA_URL": url})
            assert (refused.status, why in refused.output) == (3, True), refused


async def test_an_address_without_tls_or_without_an_api_is_said(shop: Shop) -> None:
    secure = shop.stack.url("console").replace("http:", "https:")
    ended = await shop.elsewhere("orders", "list", ORDERSAGA_URL=secure)
    assert (ended.status, "it does not speak TLS on this port" in ended.output) == (3, True), ended
    ended = await shop.elsewhere("orders", "list", ORDERSAGA_URL=shop.stack.url("order"))
    assert (ended.status, "does not know what this command needs" in ended.output) == (1, True), ended
