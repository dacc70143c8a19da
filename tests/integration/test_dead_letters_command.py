"""`ordersaga dead-letters` over real servers without a process of operations; counts of audit and cleanup."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from typer.testing import CliRunner, Result

from operations import cli
from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from operations.audit import audit
from operations.commands.removal import refusal
from operations.dead_letters.filters import Filters
from operations.dead_letters.replays import ReplayRecords
from operations.dead_letters.service import DeadLetterService
from operations.errors import UnreachableError
from operations.settings import Stack
from order_service.orders import NewRecord, Orders
from shared.access.permissions import Role
from shared.contracts import Message, RefundPayment
from shared.database import Database, Document
from shared.errors import PoisonError
from shared.http import create_app
from shared.services import SERVICES
from shared.topology import ORDER_INBOX
from tests.integration.test_dead_letters import INBOX, consuming, dead, patient
from tests.support.access import ADMIN_KEY, KEYS, key_authenticator
from tests.support.builders import an_order
from tests.support.buses import RabbitHarness
from tests.support.consoles import NOWHERE, serve
from tests.support.servers import Servers
from tests.support.terminals import TERMINAL

__all__ = ["patient"]  # a fixture, used by name


@dataclass
class World:
    """Servers without services, with dead letters on the broker."""

    stack: Stack
    database: Database
    harness: RabbitHarness

    async def run(self, *words: str, given: str | None = None, status: int = 0, **environment: str) -> str:
        """Run the command, check its exit status and return its output."""
        result = await self.invoke(*words, given=given, **environment)
        assert result.exit_code == status, result.output
        return result.output if status else result.stdout

    async def invoke(self, *words: str, given: str | None = None, **environment: str) -> Result:
        """Run the command."""
        known = {
            "ORDERSAGA_MONGODB_URL": self.stack.mongodb_url,
            "ORDERSAGA_AMQP_URL": self.stack.amqp_url,
            "ORDERSAGA_DATABASE_PREFIX": self.stack.database_prefix,
            "ORDERSAGA_OPERATOR": "ann",
        }
        runner, arguments = CliRunner(env=known | environment), ["dead-letters", *words]
        return await asyncio.to_thread(runner.invoke, cli.build_application(arguments), arguments, input=given)

    async def document(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.run(*words, "--json"))
        return found

    async def send(self, *envelopes: Any) -> None:
        await (await self.harness.bus()).publish(envelopes)


@pytest.fixture(scope="module")
async def database(servers: Servers) -> AsyncIterator[Database]:
    """Return one database for all tests: creating the indexes takes longer than most tests."""
    async with AsyncMongoClient[Document](servers.mongodb_url, tz_aware=True, w="majority") as client:
        created = client[f"t{secrets.token_hex(8)}_operations"]
        yield created
        await client.drop_database(created.name)


@pytest.fixture
async def service_url() -> AsyncIterator[str]:
    """The URL of a service that tells callers what they may do."""

    async def ready() -> dict[str, str]:
        return {}

    async with serve(create_app("console", "Callers", ready, authenticator=key_authenticator())) as url:
        yield url


@pytest.fixture
async def world(database: Database, servers: Servers, patient: None) -> AsyncIterator[World]:
    for name in await database.list_collection_names():
        await database[name].delete_many({})
    prefix = database.name.removesuffix("_operations")
    async with RabbitHarness.open(servers.amqp_url) as harness:
        yield World(Stack(servers.mongodb_url, servers.amqp_url, {}, None, prefix), database, harness)


async def test_it_records_waiting_letters_and_lists_them_in_eighty_columns(world: World) -> None:
    long = "a reason that continues " * 20
    await world.send(dead(error=long), dead(message_id="m2", body=b"\xff\x00", type_="", queue="", error="[red]x[/]"))
    listed = (await world.invoke("list", **TERMINAL)).stdout
    (error,) = [line for line in listed.splitlines() if "PoisonError: a reason that continues" in line]
    assert (len(error), error[-1]) == (80, "…")
    assert "[red]x[/]" in listed
    grouped = (await world.invoke("groups", **TERMINAL)).stdout
    assert "1 open of 1  payment  payment.refund  new" in grouped
    assert max(map(len, (listed + grouped).splitlines())) <= 80
    for command in ("list", "groups"):
        assert long.strip() in await world.run(command, COLUMNS="80"), "output for a program is cut"
    items = (await world.document("list", "--service", "payment"))["items"]
    assert [item["messageId"] for item in items] == ["m1"]
    shown = await world.run("show", items[0]["id"][:8])
    assert '"reason": "late"' in shown
    assert "Traceback" in shown
    assert len((await world.document("groups"))["items"]) == 2
    assert (await world.document("list", "--limit", "1"))["nextCursor"]
    await world.run("list", "--cursor", "nonsense", status=2)
    await world.run("edit", items[0]["id"], "--body", "/nonexistent/file", status=2)


async def test_groups_say_what_they_mean_for_customers(world: World) -> None:
    await world.send(
        *(dead(b'{"orderId": "o%d"}' % n, message_id=f"m{n}", queue="order.inbox", error="no price") for n in range(2)),
        dead(b'{"orderId": "o9"}', message_id="m9", error="no card"),
    )
    orders = world.database.client[f"{world.stack.database_prefix}_orders"]
    order = {"status": "PENDING", "settled": False, "deadline": datetime(2030, 1, 31, 9, 30, tzinfo=UTC)}
    amounts = {"o0": 250, "o1": 1000, "o9": 90_000}
    try:
        await orders["orders"].insert_many(
            [
                {"_id": key, "userId": f"u{key}", "totalAmount": amount, "currency": "EUR"} | order
                for key, amount in amounts.items()
            ]
        )
        found = await world.document("groups")
        assert [(item["title"], item["impact"]["amountsAtStake"]) for item in found["items"]] == [
            ("no card", {"EUR": 900}),
            ("no price", {"EUR": 12.5}),
        ]
        assert (found["total"], found["allRanked"]) == (2, True)
        assert found["items"][1]["impact"] | {"amountsAtStake": None} == {
            "orders": 2,
            "ordersByStatus": {"PENDING": 2},
            "unsettledOrders": 2,
            "customers": 2,
            "amounts": {"EUR": 12.5},
            "amountsAtStake": None,
            "nextDeadline": "2030-01-31T09:30:00.000Z",
            "withoutOrder": 0,
            "complete": True,
        }
        text = await world.run("groups", "--inbox", "order.inbox")
        assert "2 orders of 2 customers: 2 PENDING; 12.50 EUR at stake; next deadline 2030-01-31 09:30:00" in text
        assert "groups 2 to 2 of 2" in await world.run("groups", "--skip", "1", "--limit", "1")
        assert [item["title"] for item in (await world.document("groups", "--cause", "PRICE"))["items"]] == ["no price"]
        assert "No dead letters." in await world.run("groups", "--until", "2020-01-01")
        (letter,) = (await world.document("list", "--order", "o9"))["items"]
        assert (await world.document("show", letter["id"]))["groupImpact"]["amountsAtStake"] == {"EUR": 900}
        assert "900.00 EUR at stake" in await world.run("show", letter["id"])
        assert (await world.document("list", "--limit", "1"))["total"] == 3
        for wrong in (("--sort", "worst"), ("--since", "noon"), ("--skip", "-1")):
            await world.run("groups", *wrong, status=2)
    finally:
        await orders.client.drop_database(orders.name)


async def test_what_is_recorded_is_shown_without_the_broker_and_nothing_is_sent(world: World) -> None:
    await world.send(dead(error="no price"))
    (letter,) = (await world.document("list"))["items"]
    away = {"ORDERSAGA_AMQP_URL": "amqp://guest:secret@127.0.0.1:1/"}
    for words in (("list",), ("groups",), ("show", letter["id"]), ("preview", letter["id"])):
        result = await world.invoke(*words, "--json", **away)
        assert result.exit_code == 0, result.output
        assert (letter["id"] if words[0] == "preview" else "no price") in result.stdout
        assert json.loads(result.stdout)
        assert "only recorded dead letters are shown, not those that wait in the broker" in result.stderr
        assert "RabbitMQ does not answer: it refuses connections (" in result.stderr
        assert "secret" not in result.stderr
    refused = await world.invoke("replay", letter["id"], "--yes", **away)
    assert isinstance(refused.exception, UnreachableError)
    assert (await world.document("show", letter["id"]))["replays"] == []


async def test_it_replays_after_asking(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"), dead(message_id="m3", type_="order.created"))
    asked = await world.run("replay", "--type", "payment.refund", given="n\n", status=1)
    assert "Replay 2 dead letters (0 orders of 0 customers; 2 letters lead to no known order)?" in asked
    await world.harness.take_from(INBOX, 0)
    done = await world.document("replay", "--type", "payment.refund", "--why", "fixed", "--yes", "--at-once")
    assert (done["published"], done["total"], done["status"], done["by"]) == (2, 2, "done", "ann")
    await world.harness.take_from(INBOX, 2)
    assert "no matching dead letter" in await world.run("replay", "--type", "payment.refund", "--yes", status=1)
    assert "replayed 1 of 1" in await world.run("replay", "--all", "--yes", "--rate", "1000")
    await world.harness.take_from(INBOX, 1)
    assert len((await world.document("list", "--status", "pending"))["items"]) == 3


async def test_foreign_letters_are_named_and_left_out_unless_their_ids_are_given(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"))
    listed = (await world.document("list"))["items"]
    foreign = next(item["id"] for item in listed if item["messageId"] == "m2")
    await world.database["dead_letters"].update_one({"_id": foreign}, {"$set": {"foreign": True, "user": "inventory"}})
    why = "it was sent as inventory, who has no right to send payment.refund to payment.inbox"

    assert f"{foreign[:10]}" in await world.run("list")
    assert "foreign" in await world.run("list")
    assert why in (await world.run("show", foreign))
    asked = await world.run("replay", "--all", given="n\n", status=1)
    assert f"{foreign} is foreign, left out (replay it by its id): {why}" in asked
    assert "Replay 1 dead letter (" in asked
    assert (await world.document("replay", "--all", "--yes"))["total"] == 1
    refused = await world.run("replay", "--all", "--yes", status=1)
    assert "no matching dead letter to replay" in refused
    asked = await world.run("replay", foreign, given="n\n", status=1)
    assert f"{foreign} is foreign: {why}" in asked
    assert (await world.document("replay", foreign, "--yes"))["total"] == 1
    await world.harness.take_from(INBOX, 2)


async def half_poisoned(refunds: Sequence[RefundPayment]) -> Sequence[Message]:
    """Handle refunds except those of orders that begin with "bad"."""
    for refund in refunds:
        if refund.order_id.startswith("bad"):
            raise PoisonError(f"order {refund.order_id} is still not known")
    return ()


def letters_of(*order_ids: str) -> list[Any]:
    return [dead(message_id=f"m-{o}", body=json.dumps({"orderId": o}).encode(), error=f"no {o}") for o in order_ids]


async def test_a_replay_that_fails_again_is_not_a_success(world: World) -> None:
    await world.send(*letters_of("good1", "good2", "bad1"))
    async with consuming(world.harness, INBOX, {RefundPayment: half_poisoned}):
        how = ("--at-once", "--yes", "--wait", "--within", "120", "--why", "fixed")
        printed = await world.run("replay", "--all", *how, status=1)
    assert "replayed 3 of 3" in printed
    assert "2 handled, 1 failed again, 0 not known yet" in printed
    (again,) = (await world.document("list"))["items"]
    assert (again["orderId"], again["status"]) == ("bad1", "dead")
    assert f"{again['id']} failed again: PoisonError: order bad1 is still not known" in printed
    replay_id = again["replays"][0]["replay"]
    assert "1 failed again" in await world.run("outcome", replay_id, status=1)
    handled = await world.document("list", "--replay", replay_id, "--outcome", "handled")
    assert {item["orderId"] for item in handled["items"]} == {"good1", "good2"}
    assert "replayed by ann" in await world.run("groups", "--all", COLUMNS="200")
    assert "no replay nothing" in await world.run("outcome", "nothing", status=1)


async def test_several_letters_are_sent_carefully_and_what_stops_them_is_named(world: World) -> None:
    await world.send(*letters_of("bad1", "bad2", "bad3"))
    async with consuming(world.harness, INBOX, {RefundPayment: half_poisoned}):
        printed = await world.run("replay", "--all", "--yes", status=1)
    assert "replayed 1 of 3" in printed
    assert "0 handled, 1 failed again, 0 not known yet" in printed
    assert re.search(r"stopped: \w{32} failed again: PoisonError: order bad\d is still not known", printed)
    assert len((await world.document("list", "--status", "dead"))["items"]) == 3


async def test_a_replay_whose_messages_are_handled_is_a_success(world: World) -> None:
    await world.send(*letters_of("good1", "good2"))
    async with consuming(world.harness, INBOX, {RefundPayment: half_poisoned}):
        done = await world.document("replay", "--all", "--yes", "--wait", "--within", "120")
    assert (done["handled"], done["failedAgain"], done["unknown"]) == (2, 0, 0)
    assert (done["careful"], done["stoppedBecause"], done["failedLetters"]) == (True, None, [])
    assert (await world.document("outcome", done["id"], "--wait"))["handled"] == 2


async def test_without_a_wait_the_outcome_is_pending(world: World) -> None:
    await world.send(*letters_of("good1"))
    printed = await world.run("replay", "--all", "--yes")
    assert "0 handled, 0 failed again, 1 not known yet" in printed
    assert "--wait` waits until the outcome is known" in printed
    replay_id = printed.partition("(replay ")[2].partition(")")[0]
    waited = await world.run("outcome", replay_id, "--wait", "--within", "0.1", status=1)
    assert "no outcome after 0.1 s" in waited
    (letter,) = (await world.document("list"))["items"]
    assert f"{letter['id']} is not known yet: payment.refund in {INBOX}" in waited
    await world.harness.take_from(INBOX, 1)


async def test_it_continues_an_interrupted_replay(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"))
    await world.run("list")
    letters = DeadLetterService(world.database)
    replay_id = await letters.start_replay(Filters(), by="bob", why="", rate=100.0)
    assert await ReplayRecords(world.database).acquire("a dead process", replay_id)
    past = [{"$set": {"lease.until": {"$subtract": ["$$NOW", 1000]}}}]
    await world.database["replays"].update_one({"_id": replay_id}, past)
    printed = await world.run("replay", "--all", given="n\nn\n", status=1)
    assert f"Continue the interrupted replay {replay_id}?" in printed
    await world.run("replay", "--all", "--yes", status=1)
    replay = await letters.replay(replay_id)
    assert replay is not None
    assert (replay["status"], replay["published"]) == ("done", 2)
    await world.harness.take_from(INBOX, 2)


async def test_a_replay_that_cannot_be_continued_does_not_prevent_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Document:
        raise ValueError("odd")

    async def left(_: Any) -> list[str]:
        return ["r1"]

    monkeypatch.setattr("operations.commands.dead_letters.local_desk.abandoned", left)
    monkeypatch.setattr("operations.commands.dead_letters.replay.run_replay", broken)
    printed = await world.run("replay", "--all", "--yes", status=1)
    assert "could not continue replay r1: odd" in printed
    assert "no matching dead letter" in printed


async def test_it_previews_what_a_replay_would_do(world: World, tmp_path: Path) -> None:
    orders = world.database.client[f"{world.stack.database_prefix}_orders"]["orders"]
    await Orders(orders).insert([NewRecord(an_order(order_id=f"p{n}")) for n in range(2)])
    how = {"queue": ORDER_INBOX, "type_": "payment.failed"}
    for n, body in enumerate((b'{"orderId":"p0","reason":"no"}', b'{"orderId":"p1"}')):
        await world.send(dead(message_id=f"m{n}", body=body, **how))
    printed = await world.run("preview", "--all", COLUMNS="300", status=1)
    assert "      1  PENDING → CANCELLED, sends order.cancelled and stock.release" in printed
    assert "      1  fails again: PoisonError: not a valid payment.failed: reason: Field required" in printed
    broken = (await world.document("list", "--text", "p1"))["items"][0]["id"]
    fixed = tmp_path / "body.json"
    fixed.write_text('{"orderId":"p1","reason":"no"}')
    found = await world.document("preview", broken, "--body", str(fixed))
    assert [item["effect"] for item in found["items"]] == ["changes"]
    fixed.write_text('{"orderId":"p0","reason":"no"}')
    assert "must stay 'p1'" in await world.run("preview", broken, "--body", str(fixed), status=1)
    await world.run("preview", "--all", "--body", str(fixed), status=2)
    assert "no matching dead letter" in await world.run("preview", "--type", "nothing", status=1)
    assert {order["status"] async for order in orders.find()} == {"PENDING"}
    await world.harness.take_from(ORDER_INBOX, 0)
    await orders.drop()


async def test_it_edits_from_a_file_from_stdin_or_in_the_editor(world: World, service_url: str, tmp_path: Path) -> None:
    editing: dict[str, Any] = {"VISUAL": "", "ORDERSAGA_CONSOLE_URL": service_url, "ORDERSAGA_API_KEY": ADMIN_KEY}
    await world.send(*[dead(message_id=f"m{n}", body=b'{"orderId": 7}') for n in range(3)])
    first, second, third = [item["id"] for item in (await world.document("list"))["items"]]
    body = tmp_path / "body.json"
    body.write_text('{"orderId": 8}')
    refused = await world.run("edit", first, "--body", str(body), status=1)
    assert "orderId: must be a string (got 8)" in refused
    body.write_text('{"orderId": "o1"}')
    tried = await world.document("edit", first, "--body", str(body), "--dry-run")
    assert tried == {"id": first, "changes": [{"path": "/orderId", "before": "7", "after": '"o1"'}]}
    declined = await world.run("edit", first, "--body", str(body), given="n\n", status=1)
    assert '/orderId: 7 → "o1"' in declined, "what changes is shown before it is sent"
    assert "replayed 1 of 1" in await world.run("edit", first, "--body", str(body), "--why", "a number", given="y\n")
    other = await world.run("edit", second, "--body", "-", "--yes", given='{"orderId": "o2"}', status=1)
    assert "orderId: is 'o2' and must stay 'o1'" in other
    await world.run("edit", second, "--body", "-", "--yes", given='{"orderId": "o1", "reason": "x"}')
    await world.run("edit", third, "--yes", status=1, EDITOR="true", **editing)
    as_operator = editing | {"ORDERSAGA_API_KEY": KEYS[Role.OPERATOR]}
    assert "the editor needs the permission letters:edit" in await world.run("edit", third, status=1, **as_operator)
    await world.run("edit", third, "--yes", EDITOR="sed -i s/7/'\"o1\"'/", **editing)
    sent = [json.loads(message.body)["orderId"] for message in await world.harness.take_from(INBOX, 3)]
    assert sent == ["o1", "o1", "o1"]
    shown = await world.document("show", first)
    assert (json.loads(shown["body"]), json.loads(shown["edits"][0]["body"])) == ({"orderId": 7}, {"orderId": "o1"})


async def test_an_edit_changes_what_a_letter_is_about_only_if_it_is_unlocked_and_typed(
    world: World, tmp_path: Path
) -> None:
    await world.send(dead(body=b'{"orderId": "o1"}'))
    (letter,) = (await world.document("list"))["items"]
    body = tmp_path / "body.json"
    body.write_text('{"orderId": "o2"}')
    edit = ("edit", letter["id"], "--body", str(body))
    assert "must stay 'o1'" in await world.run(*edit, "--yes", status=1)
    await world.run(*edit, "--unlock", "userId", status=2)
    asked = await world.run(*edit, "--unlock", "orderId", given="y\no3\n", status=1)
    assert "orderId would no longer be o1. Type the new orderId" in asked
    assert "the new orderId is not confirmed, so nothing is sent" in asked
    await world.run(*edit, "--unlock", "orderId", given="y\no2\n")
    shown = await world.document("show", letter["id"])
    assert (shown["orderId"], shown["edits"][0]["identities"]) == ("o2", {"orderId": ["o1", "o2"]})
    await world.harness.take_from(INBOX, 1)


async def test_one_patch_edits_all_letters_with_one_mistake(world: World, tmp_path: Path) -> None:
    wrong = [dead(message_id=f"m{n}", body=b'{"orderId": "o1", "reason": 7, "token": "tok_secret"}') for n in range(4)]
    await world.send(*wrong, dead(message_id="right"))
    fix = '[{"op": "test", "path": "/reason", "value": 7}, {"op": "replace", "path": "/reason", "value": "late"}]'
    file = tmp_path / "patch.json"
    file.write_text(fix)
    tried = await world.document("edit", "--all", "--patch", str(file), "--dry-run")
    assert (tried["total"], tried["changed"]) == (5, 4)
    assert tried["leftOut"] == [{"reason": "the test of /reason failed", "letters": 1}]
    assert tried["samples"][0]["changes"] == [{"path": "/reason", "before": "7", "after": '"late"'}]
    # The first would record that the order is not to be charged, and the others find that record.
    assert [(row["effect"], row["letters"]) for row in tried["replays"]] == [("changes nothing", 3), ("changes", 1)]
    shown = await world.run("edit", "--all", "--patch", fix, "--dry-run")
    assert "4 letters changed, 1 left as they are" in shown
    assert "1  left: the test of /reason failed" in shown
    assert '/reason: 7 → "late"' in shown
    assert (await world.document("list"))["items"][0]["edits"] == []
    asked = await world.run("edit", "--all", "--patch", fix, given="n\n", status=1)
    assert (
        "Edit and replay 4 dead letters (selected: 0 orders of 0 customers; 5 letters lead to no known order)?" in asked
    )
    done = await world.document(
        "edit", "--type", "payment.refund", "--patch", fix, "--why", "a number", "--at-once", "--yes"
    )
    assert (done["total"], done["published"], done["leftOut"]) == (5, 4, tried["leftOut"])
    bodies = {json.loads(message.body)["reason"] for message in await world.harness.take_from(INBOX, 4)}
    assert bodies == {"late"}
    again = await world.run("edit", "--all", "--patch", fix, "--why", "again", "--yes", status=1)
    assert "there is no matching dead letter that the patch changes" in again


async def test_a_patch_that_touches_what_letters_are_about_needs_its_name(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"))
    move = '[{"op": "replace", "path": "/orderId", "value": "o2"}]'
    assert "touches orderId" in await world.run("edit", "--all", "--patch", move, "--dry-run", status=2)
    asked = await world.run("edit", "--all", "--patch", move, "--unlock", "orderId", given="y\nno\n", status=1)
    assert "orderId is not confirmed, so nothing is sent" in asked
    await world.run("edit", "--all", "--patch", move, "--unlock", "orderId", "--at-once", given="y\norderId\nmoved\n")
    assert {json.loads(message.body)["orderId"] for message in await world.harness.take_from(INBOX, 2)} == {"o2"}


async def test_discarded_letters_are_restored_for_a_reason(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"))
    assert await world.document("discard", "--all", "--yes", "--why", "a mistake") == {"discarded": 2, "before": 0}
    one, other = [item["id"] for item in (await world.document("list", "--status", "discarded"))["items"]]
    await world.run("restore", "--all", "--yes", status=2)
    asked = await world.run("restore", one, given="n\n", status=1)
    assert "Restore 1 dead letter (0 orders of 0 customers; 1 letter leads to no known order)?" in asked
    assert "restored 1" in await world.run("restore", one, "--why", "it was right", given="y\n")
    assert "restored " in await world.run("show", one)
    assert await world.document("restore", "--type", "payment.refund", "--yes", "--why", "all") == {
        "restored": 1,
        "before": 0,
    }
    assert "no matching dead letter to restore" in await world.run("restore", other, "--yes", "--why", "x", status=1)
    assert {item["status"] for item in (await world.document("list"))["items"]} == {"dead"}


async def test_tokens_and_personal_fields_are_hidden_unless_the_key_may_edit_letters(
    world: World, service_url: str, tmp_path: Path
) -> None:
    secret = "Zq7-very-secret"
    body = json.dumps({"orderId": "o1", "payment": {"token": secret}, "address": {"city": secret}}).encode()
    await world.send(dead(body=body, error="ann@example.com is not known"), dead(message_id="m2", body=secret.encode()))
    [first, second] = [item["id"] for item in (await world.document("list"))["items"]]
    file = tmp_path / "letters.jsonl"
    hidden = [
        *[await world.run("show", letter) for letter in (first, second)],
        *[json.dumps(await world.document(*words)) for words in (("show", first), ("list",), ("export", "--all"))],
        await world.run("list"),
        await world.run("groups"),
    ]
    for shown in hidden:
        assert secret not in shown
        assert "ann@example.com" not in shown
    assert f"{len(secret)} bytes, SHA-256" in "".join(hidden)
    file.write_text("kept")
    asking: dict[str, Any] = {"ORDERSAGA_CONSOLE_URL": service_url}
    for key in (KEYS[Role.OPERATOR], "osk_wrong"):
        for words in (["show", first], ["list"], ["export", "--all", "-o", str(file)]):
            refused = await world.run(*words, "--unmasked", status=1, ORDERSAGA_API_KEY=key, **asking)
            assert "--unmasked needs the permission letters:edit" in refused
    assert file.read_text() == "kept"
    allowed = asking | {"ORDERSAGA_API_KEY": ADMIN_KEY}
    assert secret in await world.run("show", first, "--unmasked", **allowed)
    assert "ann@example.com" in await world.run("list", "--unmasked", **allowed)
    exported = await world.run("export", "--all", "--unmasked", **allowed)
    assert {json.loads(line)["body"] for line in exported.splitlines()} == {body.decode(), secret}


async def test_without_a_service_that_confirms_the_permission_nothing_hidden_is_shown(world: World) -> None:
    await world.send(dead())
    nowhere: dict[str, Any] = {f"ORDERSAGA_{name.upper()}_URL": NOWHERE for name in SERVICES}
    result = await world.invoke("list", "--unmasked", **nowhere)
    assert "no service answers that could confirm it" in str(result.exception)
    assert isinstance(result.exception, UnreachableError)


async def test_it_discards_for_a_reason_and_exports_everything(world: World, service_url: str, tmp_path: Path) -> None:
    await world.send(dead(), dead(message_id="m2", body=b"\xff\x00"))
    await world.run("discard", "--all", "--yes", status=2)
    assert await world.document("discard", "--all", "--yes", "--why", "a test") == {"discarded": 2, "before": 0}
    assert (await world.document("list"))["items"] == []
    assert len((await world.document("list", "--status", "discarded"))["items"]) == 2
    await world.run("discard", "--all", "--yes", "--why", "again", status=1)
    file = tmp_path / "letters.jsonl"
    file.touch(0o644)
    known: dict[str, Any] = {"ORDERSAGA_CONSOLE_URL": service_url, "ORDERSAGA_API_KEY": ADMIN_KEY}
    await world.run("export", "--all", "--unmasked", "--output", str(file), **known)
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line.get("body") or line.get("bodyBase64") for line in lines} == {dead().body.decode(), "/wA="}
    document = await world.document("export", "--all")
    assert (len(document["items"]), document["nextCursor"]) == (2, None)
    assert len((await world.document("list", "--all"))["items"]) == 2
    one = document["items"][0]["id"]
    assert [item["id"] for item in (await world.document("list", one))["items"]] == [one]
    await world.run("export", "nothing", "-o", str(file), status=1)
    assert file.read_text()
    await world.run("export", "--all", "-o", str(tmp_path / "none" / "file"), status=2)
    await world.run("export", "--service", "order", status=1)


@pytest.mark.parametrize(
    "words",
    [
        ["replay"],
        ["replay", "--all", "--service", "order"],
        ["discard", "--why", "x"],
        ["replay", "--all", "--json"],
        ["edit"],
        ["edit", "a", "b"],
        ["edit", "--all"],
        ["edit", "--patch", "[]", "a"],
        ["edit", "--patch", "/nonexistent", "a"],
        ["edit", "a", "--patch", '[{"op": "remove", "path": "/x"}]', "--body", "-"],
        ["edit", "a", "--patch", '[{"op": "remove", "path": "/x"}]', "--yes"],
        ["edit", "a", "--body", "-", "--json"],
        ["edit", "a", "--body", "-"],
        ["edit", "a", "--unlock", "userId"],
        ["restore", "--why", "x"],
        ["list", "--status", "lost"],
        ["list", "--since", "yesterday"],
        ["export"],
    ],
)
def test_wrong_usage_ends_with_status_2(words: list[str]) -> None:
    result = CliRunner().invoke(cli.build_application(["dead-letters"]), ["dead-letters", *words])
    assert result.exit_code == 2, result.output


async def test_an_unknown_or_ambiguous_id_ends_with_status_1(world: World) -> None:
    assert "no dead letter 123" in await world.run("show", "123", status=1)
    await world.send(dead(), dead(message_id="m2"))
    assert "several dead letters" in await world.run("show", "", status=1)


async def test_audit_and_cleanup_count_letters_wherever_they_are(world: World) -> None:
    async def counted() -> int:
        report = await audit(world.stack.mongodb_url, world.stack.amqp_url, world.stack.database_prefix)
        found: int = report.information["deadLetters"]
        return found

    await world.send(dead(), dead(message_id="m2"))
    assert await counted() == 2
    await world.run("list")
    await world.send(dead(message_id="m3"))
    assert await counted() == 3
    assert "3 dead letters" in (await refusal(world.stack) or "")
    await world.run("replay", "--all", "--yes", "--rate", "1000", "--at-once")
    assert await counted() == 0
    assert "3 dead letters" in (await refusal(world.stack) or "")
    await world.database["dead_letters"].update_many({}, {"$set": {"status": "handled"}})
    assert await refusal(world.stack) is None
    await world.harness.take_from(INBOX, 3)


async def test_an_order_whose_message_is_a_recorded_letter_has_not_lost_it(world: World) -> None:
    """The message is lost only when its letter is handled and no other message exists."""
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    orders = world.database.client[f"{world.stack.database_prefix}_orders"]["orders"]
    order = {"status": "CONFIRMED", "stockStatus": "RESERVED", "paymentStatus": "PENDING", "settled": False}
    await orders.insert_one({"_id": "o1", "createdAt": long_ago, "updatedAt": long_ago, "history": [], **order})

    async def lost() -> bool:
        stack = world.stack
        report = await audit(stack.mongodb_url, stack.amqp_url, stack.database_prefix, confirm_after=0)
        return "message lost" in {violation.kind for violation in report.violations}

    try:
        await world.send(dead())
        await world.run("list")
        assert not await lost()
        await world.database["dead_letters"].update_many({}, {"$set": {"status": "discarded"}})
        assert not await lost()
        await world.database["dead_letters"].update_many({}, {"$set": {"status": "handled"}})
        assert await lost()
    finally:
        await orders.database.client.drop_database(orders.database.name)


async def test_more_than_named_letters_may_need_a_second_person(world: World) -> None:
    await world.send(dead(), dead(message_id="m2"))
    records = ApprovalRecords(world.database)
    await records.publish(ApprovalPolicy(None, frozenset({"dead-letters.replay", "dead-letters.discard"})))
    for action, words in (("replay", ("--all",)), ("discard", ("--type", "payment.refund"))):
        said = await world.run(action, *words, "--yes", "--why", "because", status=1)
        assert f"nothing is done yet: dead-letters.{action} needs a second person" in said.replace("\n", " ")
    asked = {record["action"]: record for record in await records.newest(10)}
    assert asked["dead-letters.discard"]["parameters"]["filters"]["type"] == "payment.refund"
    for record in asked.values():
        until = record["parameters"]["filters"]["until"]
        assert until <= record["at"], "what fails after the question is not what was confirmed"
    assert {(record["by"]["subject"], record["status"], record["why"]) for record in asked.values()} == {
        ("ann", "pending", "because")
    }
    letters = DeadLetterService(world.database)
    assert (await letters.counts())["dead"] == 2
    assert await letters.replays(limit=1) == []
    # A letter that is named by its id needs no second person.
    letter = (await letters.page(Filters())).items[0]["_id"]
    await world.run("discard", letter, "--yes", "--why", "because")
    assert (await letters.counts())["discarded"] == 1
