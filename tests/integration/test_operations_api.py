"""The operations API over real servers: what it does with orders and dead letters, for whom, and what it refuses."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import httpx
import pytest

from operations.approvals.policy import DISCARD, REFUND_PART, REPLAY, ApprovalPolicy
from operations.console import ConsoleDependencies
from operations.incidents.incident import Incident
from operations.incidents.records import IncidentRecords
from operations.notifications.editing import RuleEditor
from operations.notifications.records import NotificationRecords
from operations.notifications.rules import Rule
from operations.order_actions.bulk import BY_CONSOLE, RUNNING, START_VALID_FOR, STARTING, BulkActions
from operations.sign_in.links import SignInLinks
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.clock import utc_now
from shared.database import Document
from shared.topology import EXCHANGE
from tests.support.access import ADMIN, ADMIN_KEY, KEYS, bearer
from tests.support.consoles import BASE, BY_ADMIN, OURS, Clock, a_letter, an_app, console_dependencies, record_letters
from tests.support.eventually import eventually
from tests.support.processes import SAGA_SERVICES, Stack, run_module_stack
from tests.support.servers import Servers

WHY = {"reason": "the customer called"}
POISON = b'{"orderId": "poison", "items": "many"}'
CORRECTED = '{"orderId": "poison", "items": []}'
PERSONAL = b'{"orderId": "o1", "userId": "u1", "customer": {"name": "Ann Example"}, "payment": {"token": "tok_secret"}}'


@pytest.fixture(scope="module")
async def stack(servers: Servers) -> AsyncIterator[Stack]:
    async with run_module_stack(servers) as running:
        urls = {f"{name}_url": running.url(name) for name in SAGA_SERVICES}
        await running.start("console", api_key=ADMIN_KEY, **urls)
        await running.stock("p1", 1000)
        yield running


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """The API of a running stack; like a program, it does not say from which page it asks."""
    address = f"{stack.url('console')}/api/v1"
    async with httpx.AsyncClient(base_url=address, headers=ADMIN, timeout=60) as client:
        yield client


@pytest.fixture
async def dependencies(mongodb_url: str, amqp_url: str, database_prefix: str) -> AsyncIterator[ConsoleDependencies]:
    policy = ApprovalPolicy(10_000, frozenset({REPLAY, DISCARD}))
    async with console_dependencies(mongodb_url, amqp_url, database_prefix, approval_policy=policy) as found:
        yield found


@asynccontextmanager
async def calling(dependencies: ConsoleDependencies, headers: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(an_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url=f"{BASE}/api/v1", headers=headers) as client:
        yield client


def stored(order_id: str, status: str = "PENDING") -> Document:
    amount = {"userId": "others", "totalAmount": 1000, "currency": "USD"}
    return {"_id": order_id, "status": status, "settled": False, "createdAt": utc_now(), "history": [], **amount}


# --- Orders. ---


async def test_an_order_is_found_followed_and_refunded_in_part(stack: Stack, api: httpx.AsyncClient) -> None:
    order_id = await stack.place(userId="anna")
    await stack.settled(order_id)
    listed = (await api.get("/orders", params={"userId": "anna", "status": ["CONFIRMED", "COMPLETED"]})).json()
    assert ([order["orderId"] for order in listed["items"]], listed["total"]) == ([order_id], 1)

    shown = (await api.get(f"/orders/{order_id}")).json()
    assert (shown["status"], shown["waitingFor"], shown["mentions"]) == ("CONFIRMED", [], [])
    assert {step["lane"] for step in shown["steps"]} >= {"order", "stock", "payment"}
    assert shown["actions"] == ["deliver"]

    refused = await api.post(f"/orders/{order_id}/cancel", json=WHY)
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert refused.json()["detail"].startswith("Not done: ")

    part, key = {"amount": 5, **WHY}, {"Idempotency-Key": "refund-1"}
    for _ in range(2):
        answer = await api.post(f"/orders/{order_id}/refunds", json=part, headers=key)
        assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/orders/{order_id}")
        assert answer.json() == {"outcome": "done", "approval": None}
    assert (await stack.settled(order_id))["refundedAmount"] == 5

    entries = (await api.get("/actions", params={"subject": order_id})).json()["items"]
    known = [(entry["action"], entry["outcome"]) for entry in entries if entry["outcome"].startswith("accepted")]
    again = ("order.refund-part", "accepted before: this was sent twice")
    assert known == [again, ("order.refund-part", "accepted")]
    assert {(entry["by"], entry["why"]) for entry in entries} == {(BY_ADMIN, WHY["reason"])}


async def test_many_orders_are_counted_first_and_acted_on_once(stack: Stack, api: httpx.AsyncClient) -> None:
    for process in stack.processes("payment"):
        await stack.kill(process)
    try:
        placed = [await stack.place(userId="bulk") for _ in range(3)]
        body = {"matching": {"userId": "bulk", "status": ["PENDING"]}, **WHY, "rate": 1000}
        counted = await api.post("/bulk-actions/cancel", json=body | {"dryRun": True})
        assert counted.status_code == 200
        about = {"orders": 3, "customers": 1, "amounts": {"USD": 30}, "leftOut": 0}
        selection = counted.json()["selection"]
        assert counted.json() == about | {"selection": selection, "actionId": None}

        key = {"Idempotency-Key": "bulk-1"}
        known = (await api.post("/bulk-actions/cancel", json=body | {"dryRun": True}, headers=key)).json()["actionId"]
        body["expectedSelection"] = selection
        started = [await api.post("/bulk-actions/cancel", json=body, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in started] == [202, 202]
        assert len({answer.headers["location"] for answer in started}) == 1
        another = body | {"matching": {"userId": "another"}}
        assert (await api.post("/bulk-actions/cancel", json=another, headers=key)).status_code == 422

        assert started[0].json()["id"] == known
        address = started[0].headers["location"].removeprefix("/api/v1")

        async def ended() -> bool:
            return bool((await api.get(address)).json()["status"] == "ended")

        await eventually(ended, 60, "the action to end")
        shown = (await api.get(address)).json()
        assert (shown["done"], shown["open"], shown["by"], shown["why"]) == (3, 0, BY_ADMIN, WHY["reason"])
        first = (await api.get(f"{address}/results", params={"limit": 2})).json()
        rest = (await api.get(f"{address}/results", params={"cursor": first["nextCursor"]})).json()
        assert [item["orderId"] for item in first["items"] + rest["items"]] == placed
        assert [(await stack.order(each))["status"] for each in placed] == ["CANCELLED"] * 3
        assert (await api.post(f"{address}/stop", json=WHY)).status_code == 409
        listed = (await api.get("/bulk-actions", params={"limit": 1})).json()
        assert (listed["items"], listed["total"], listed["nextCursor"]) == ([shown], 1, None)
    finally:
        await stack.start("payment")
    await stack.all_settled(placed)


async def test_a_repeated_release_asks_a_second_person_once(dependencies: ConsoleDependencies) -> None:
    paid = {"_id": "ghost", "status": "PROCESSED", "amount": 10_000, "currency": "USD"}
    await dependencies.client[f"{dependencies.prefix}_payments"]["payments"].insert_one(paid)
    async with calling(dependencies, ADMIN) as program:
        key = {"Idempotency-Key": "ghost-1"}
        answers = [await program.post("/orders/ghost/release", json=WHY, headers=key) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        (asked,) = (await program.get("/approvals")).json()["items"]
        assert {answer.json()["approval"] for answer in answers} == {asked["id"]}


async def test_a_refusal_of_the_inventory_is_passed_on(api: httpx.AsyncClient) -> None:
    for path in ("/products", "/slots"):
        refused = await api.get(path, params={"cursor": "wrong"})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "cursor"), refused.text


async def test_an_action_does_nothing_if_it_would_be_about_others(dependencies: ConsoleDependencies) -> None:
    async with calling(dependencies, ADMIN) as program:
        await dependencies.orders.insert_many([stored("others-1"), stored("others-2", "FAILED")])
        body = {"matching": {"userId": "others", "status": ["PENDING"]}, **WHY}
        counted = (await program.post("/bulk-actions/cancel", json=body | {"dryRun": True})).json()
        assert counted["orders"] == 1
        # As many as before, and another one.
        await dependencies.orders.update_one({"_id": "others-1"}, {"$set": {"status": "FAILED"}})
        await dependencies.orders.update_one({"_id": "others-2"}, {"$set": {"status": "PENDING"}})
        body["expectedSelection"] = counted["selection"]
        refused = await program.post("/bulk-actions/cancel", json=body)
        assert (refused.status_code, "not those that were expected" in refused.json()["detail"]) == (409, True)
        counted = (await program.post("/bulk-actions/cancel", json=body | {"dryRun": True})).json()
        body["expectedSelection"] = counted["selection"]
        assert (await program.post("/bulk-actions/cancel", json=body)).status_code == 202


async def test_a_repeated_start_does_not_choose_again_while_the_first_one_begins(
    dependencies: ConsoleDependencies,
) -> None:
    bulks, key = dependencies.operations["bulk_actions"], {"Idempotency-Key": "again"}
    async with calling(dependencies, ADMIN) as program:
        await dependencies.orders.insert_one(stored("others-3"))
        body = {"matching": {"userId": "others", "status": ["PENDING"]}, **WHY}
        counted = (await program.post("/bulk-actions/cancel", json=body | {"dryRun": True})).json()
        body["expectedSelection"] = counted["selection"]
        begun = (await program.post("/bulk-actions/cancel", json=body, headers=key)).json()
        await bulks.update_one({"_id": begun["id"]}, {"$set": {"status": STARTING}})
        await dependencies.orders.update_one({"_id": "others-3"}, {"$set": {"status": "CANCELLED"}})
        again = await program.post("/bulk-actions/cancel", json=body, headers=key)
        assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, begun["id"], STARTING)

        # Its process has ended: the next request with the key starts it anew, or finds that there is nothing to do.
        await bulks.update_one({"_id": begun["id"]}, {"$set": {"at": utc_now() - START_VALID_FOR}})
        assert (await program.post("/bulk-actions/cancel", json=body, headers=key)).status_code == 409
        await dependencies.orders.update_one({"_id": "others-3"}, {"$set": {"status": "PENDING"}})
        again = await program.post("/bulk-actions/cancel", json=body, headers=key)
        assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, begun["id"], RUNNING)


async def test_a_change_of_a_rule_sets_only_what_is_given(dependencies: ConsoleDependencies) -> None:
    records = NotificationRecords(dependencies.operations)
    await records.add(Rule("night", "slack"))
    # Somebody turns it off between what a request has read and what it writes.
    await records.enable("night", False)
    assert await RuleEditor(dependencies.operations).change("night", {"kinds": ["paused"]}, by="ann", why="x") == Rule(
        "night", "slack", kinds=("paused",), enabled=False
    )
    assert await records.change("nobodys", {"kinds": []}) is None


async def test_a_start_that_was_killed_is_done_anew(dependencies: ConsoleDependencies) -> None:
    clock, orders = Clock(), [{"_id": "o1", "userId": "u1"}, {"_id": "o2", "userId": "u1"}]
    records = BulkActions(dependencies.operations, clock)
    asked: dict[str, Any] = {"why": "because", "action": "cancel", "selection": {}, "rate": 10.0, "via": BY_CONSOLE}
    asked |= {"person": Person("ann", "ann", frozenset({Role.ADMIN})), "bulk_id": "b1"}
    await records.start(orders, **asked)
    await dependencies.operations["bulk_actions"].update_one({"_id": "b1"}, {"$set": {"status": STARTING}})
    await dependencies.operations["bulk_action_orders"].delete_one({"orderId": "o2"})
    # Another process may still be at it.
    assert (await records.start(orders, **asked))["status"] == STARTING
    clock.now += START_VALID_FOR
    assert (await records.start(orders[1:], **asked))["status"] == RUNNING
    assert [item["orderId"] for item in await records.results("b1")] == ["o2"]


async def test_what_is_wrong_is_named(api: httpx.AsyncClient) -> None:
    both = {"orderIds": ["x1"], "matching": {}, **WHY}
    for path, body, field in (
        ("/bulk-actions/cancel", both, "orderIds"),
        ("/bulk-actions/cancel", {"matching": {}, **WHY}, "matching"),
        ("/bulk-actions/cancel", {"matching": {"userId": ""}, **WHY}, "matching.userId"),
        ("/bulk-actions/cancel", {"matching": {"all": True, "stuck": True}, **WHY}, "matching"),
        ("/bulk-actions/cancel", {"matching": {"status": ["GONE"]}, **WHY}, "matching.status[0]"),
        ("/replays", {"letters": {}, **WHY}, "ids"),
        ("/replays", {"letters": {"all": True, "service": "order"}, **WHY}, "ids"),
        ("/dead-letters/discard", {"letters": {"all": True}}, "reason"),
        ("/orders/x1/cancel", {"reason": " "}, "reason"),
    ):
        answer = await api.post(path, json=body)
        assert answer.status_code == 422, (path, answer.text)
        assert [error["field"] for error in answer.json()["errors"]] == [field], (path, answer.text)
    for path in (
        "/orders?status=GONE",
        "/orders?cursor=x",
        "/dead-letters?status=gone",
        "/dead-letters?outcome=failed",
    ):
        assert (await api.get(path)).status_code == 422, path
    for path in ("/orders", "/incidents", "/dead-letters"):
        for time in ("0001-01-01T00:00:00+14:00", "2030-01-01T00:00:00", "4711"):
            assert (await api.get(path, params={"since": time})).status_code == 422, (path, time)
    for path in ("/orders/x1", "/bulk-actions/x1", "/dead-letters/x1", "/dead-letter-groups/x1", "/replays/x1"):
        assert (await api.get(path)).status_code == 404, path
    unknown = await api.get("/nothing/here")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")


# --- Dead letters. ---


async def test_a_dead_letter_is_found_previewed_corrected_and_handled(stack: Stack, api: httpx.AsyncClient) -> None:
    poison = {"orderId": "poison", "service": "inventory"}
    async with await aio_pika.connect(stack.amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(EXCHANGE)
        message = aio_pika.Message(POISON, type="stock.release", correlation_id="poison")
        await exchange.publish(message, "stock.release")

    async def recorded() -> bool:
        return bool((await api.get("/dead-letters", params=poison)).json()["items"])

    await eventually(recorded, 60, "the letter to be recorded")
    (letter,) = (await api.get("/dead-letters", params=poison)).json()["items"]
    address = f"/dead-letters/{letter['id']}"
    assert (await api.get(address)).json()["body"] == POISON.decode()
    assert (await api.get(f"{address}/preview")).json()["effect"] == "fails again"
    group = f"/dead-letter-groups/{letter['fingerprint']}"
    assert (await api.get(f"{group}/preview")).json()["total"] == 1
    assert (await api.post(f"{group}/notes", json={"text": "seen"})).json()["notes"][0]["text"] == "seen"
    assert (await api.patch(group, json={"status": "acknowledged"})).json()["status"] == "acknowledged"
    groups = (await api.get("/dead-letter-groups")).json()
    assert [each["fingerprint"] for each in groups["items"]] == [letter["fingerprint"]]

    replay = await api.post("/replays", json={"letters": {"ids": [letter["id"]]}, **WHY})
    assert replay.status_code == 202, replay.text
    assert await verdict(api, replay) == "failed again"

    refused = await api.post(f"{address}/edit", json={"body": POISON.decode(), **WHY})
    assert refused.status_code == 422, refused.text
    edited = await api.post(f"{address}/edit", json={"body": CORRECTED, **WHY})
    assert edited.status_code == 202, edited.text
    assert await verdict(api, edited) == "handled"
    assert (await api.get("/replays", params={"limit": 1})).json()["items"][0]["verdict"] == "handled"


async def verdict(api: httpx.AsyncClient, started: httpx.Response) -> str:
    """What a replay has come to, once it is known."""
    address, found = started.headers["location"].removeprefix("/api/v1"), {}

    async def known() -> bool:
        found.update((await api.get(address)).json())
        return found["verdict"] not in ("running", "not known yet")

    await eventually(known, 60, "the outcome of the replay")
    return str(found["verdict"])


async def test_many_letters_are_edited_by_one_patch_and_discarded_ones_restored(
    dependencies: ConsoleDependencies,
) -> None:
    refund: dict[str, Any] = {"queue": "payment.inbox", "routing_key": "payment.refund"}
    bodies = [b'{"orderId": "o%d", "reason": %s}' % (n, b"7" if n < 3 else b'"late"') for n in range(4)]
    await record_letters(dependencies, *[a_letter(f"o{n}", body=body, **refund) for n, body in enumerate(bodies)])
    patch = '[{"op":"test","path":"/reason","value":7},{"op":"replace","path":"/reason","value":"late"}]'
    async with calling(dependencies, ADMIN) as program:
        ids = [letter["id"] for letter in (await program.get("/dead-letters")).json()["items"]]
        edit = {"letters": {"ids": ids}, "patch": patch, **WHY}
        would = await program.post("/dead-letters/edit", json=edit | {"dryRun": True})
        assert (would.status_code, would.json()["total"], would.json()["changed"]) == (200, 4, 3)
        locked = edit | {"patch": '[{"op":"replace","path":"/orderId","value":"x"}]'}
        assert (await program.post("/dead-letters/edit", json=locked)).json()["errors"][0]["field"] == "patch"
        started = await program.post("/dead-letters/edit", json=edit)
        assert (started.status_code, started.json()["total"]) == (202, 4), started.text
        await program.post(f"{started.headers['location'].removeprefix('/api/v1')}/stop")

        every = {"letters": {"ids": ids}, **WHY}
        discarded = (await program.post("/dead-letters/discard", json=every)).json()["discarded"]
        assert discarded > 0
        assert (await program.post("/dead-letters/restore", json=every)).json() == {"restored": discarded, "before": 0}


async def test_audits_and_incidents_are_listed(dependencies: ConsoleDependencies) -> None:
    async with calling(dependencies, ADMIN) as program:
        started = await program.post("/audits")
        assert started.status_code == 202, started.text
        address = started.headers["location"].removeprefix("/api/v1")

        async def ended() -> bool:
            return bool((await program.get(address)).json()["status"] != "running")

        await eventually(ended, 60, "the audit to end")
        (listed,) = (await program.get("/audits")).json()["items"]
        shown = (await program.get(address)).json()
        assert shown.pop("information")["inFlight"] == 0
        assert shown == listed | {"violations": []}
        assert (listed["by"], listed["found"]) == (BY_ADMIN, 0)
        happened = Incident("i1", dependencies.clock(), "failover", "Another member is primary", "mongodb")
        await IncidentRecords(dependencies.operations).add([happened])
        found = (await program.get("/incidents", params={"severity": "warning"})).json()
        assert [(each["kind"], each["severity"]) for each in found["items"]] == [("failover", "warning")]
        assert (await program.get("/incidents", params={"kind": "gone"})).status_code == 422


# --- Who may do what. ---


async def test_only_credentials_of_programs_count_and_only_those_of_staff(dependencies: ConsoleDependencies) -> None:
    ann = Person("ann", "ann", frozenset({Role.ADMIN}))
    secret, _ = await SignInLinks(dependencies.operations, dependencies.clock).create(ann)
    async with calling(dependencies, OURS) as browser:
        # A page that another site opens could use the session of whoever is signed in.
        assert (await browser.post(f"{BASE}/sign-in/link", data={"token": secret})).status_code == 303
        assert (await browser.get(f"{BASE}/")).status_code == 200
        refused = await browser.get("/orders", headers={"Accept": "text/html"})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    async with calling(dependencies, bearer(KEYS[Role.CLIENT])) as shop:
        refused = await shop.get("/orders")
        assert (refused.status_code, refused.json()["status"]) == (403, 403)
    async with calling(dependencies, ADMIN) as program:
        assert (await program.get("/orders")).status_code == 200
        elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert (await program.post("/orders/x1/cancel", json=WHY, headers=elsewhere)).status_code == 403


async def test_tokens_and_personal_fields_are_masked(dependencies: ConsoleDependencies) -> None:
    await record_letters(dependencies, a_letter("o1", body=PERSONAL))
    for role, is_masked in ((Role.OPERATOR, True), (Role.ADMIN, False)):
        async with calling(dependencies, bearer(KEYS[role])) as caller:
            (letter,) = (await caller.get("/dead-letters")).json()["items"]
            body = (await caller.get(f"/dead-letters/{letter['id']}")).json()["body"]
            assert ("tok_secret" not in body) == ("Ann" not in body) == is_masked, body
            assert json.loads(body)["orderId"] == "o1"


async def test_what_needs_a_second_person_waits_for_one(dependencies: ConsoleDependencies) -> None:
    order = {"status": "FAILED", "settled": False, "totalAmount": 10_000, "createdAt": dependencies.clock()}
    await dependencies.orders.insert_many([{"_id": name, "history": [], **order} for name in ("large", "other")])
    await record_letters(dependencies, a_letter("o1"))
    every: dict[str, Any] = {"letters": {"all": True}, **WHY}
    async with calling(dependencies, ADMIN) as program:
        for path, body, action in (
            ("/orders/large/refund", WHY, "order.refund"),
            ("/replays", every, REPLAY),
            ("/dead-letters/discard", every, DISCARD),
        ):
            answer = await program.post(path, json=body)
            assert (answer.status_code, answer.json()["outcome"]) == (202, "waiting"), answer.text
            asked = (await program.get(answer.headers["location"].removeprefix("/api/v1"))).json()
            assert (asked["action"], asked["status"], asked["by"]) == (action, "pending", BY_ADMIN)
        waiting = (await program.get("/approvals")).json()["items"]
        assert [each["action"] for each in waiting] == [DISCARD, REPLAY, "order.refund"]
        key = {"Idempotency-Key": "refund-1"}
        for order_id, amount, answered in (("large", 5, 202), ("large", 5, 202), ("large", 6, 422), ("other", 5, 202)):
            part = {"amount": amount, **WHY}
            answer = await program.post(f"/orders/{order_id}/refunds", json=part, headers=key)
            assert answer.status_code == answered, answer.text
        parts = [each for each in (await program.get("/approvals")).json()["items"] if each["action"] == REFUND_PART]
        assert [each["subject"] for each in parts] == ["other", "large"]
        # A letter that is named is decided on by one person.
        (letter,) = (await program.get("/dead-letters")).json()["items"]
        done = await program.post("/dead-letters/discard", json={"letters": {"ids": [letter["id"]]}, **WHY})
        assert (done.status_code, done.json()["discarded"]) == (200, 1)


async def test_what_is_away_is_said_and_the_rest_is_shown(dependencies: ConsoleDependencies) -> None:
    async with calling(dependencies, ADMIN) as program:
        order = {"status": "PENDING", "settled": False, "paymentStatus": "PENDING", "createdAt": dependencies.clock()}
        await dependencies.orders.insert_one({"_id": "waiting", "history": [], "totalAmount": 1000, **order})
        away = {outage["name"]: outage for outage in (await program.get("/outages")).json()["items"]}
        assert {"order", "inventory", "payment"} <= away.keys()
        assert away["payment"]["waiting"]["orders"] == 1
        shown = (await program.get("/overview")).json()
        assert (shown["unsettled"]["inFlight"], shown["unavailable"]) == (1, {})


# --- What the console has beside orders and letters. ---


async def test_rules_of_notifications_are_kept(dependencies: ConsoleDependencies) -> None:
    new = {"name": "night", "channel": "slack", "severities": ["critical"], "reason": "nights"}
    async with calling(dependencies, ADMIN) as program:
        added = await program.post("/notification-rules", json=new)
        assert (added.status_code, added.headers["location"]) == (201, "/api/v1/notification-rules/night"), added.text
        assert (await program.post("/notification-rules", json=new)).status_code == 409
        rule = (await program.get("/notification-rules/night")).json()
        assert (
            rule
            == added.json()
            == {
                "name": "night",
                "channel": "slack",
                "to": [],
                "kinds": [],
                "severities": ["critical"],
                "services": [],
                "enabled": True,
            }
        )
        for wrong, found in (({"channel": "email"}, "to"), ({"kinds": ["gone"]}, "kinds"), ({"reason": ""}, "reason")):
            answer = await program.patch("/notification-rules/night", json={"reason": "x"} | wrong)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, found)
        to_mail = {"channel": "email", "to": ["ops@example.org"], "enabled": False, "reason": "by mail"}
        nothing = await program.patch("/notification-rules/night", json={"reason": "x"})
        assert (nothing.status_code, nothing.json()["errors"][0]["field"]) == (422, "body")
        changed = await program.patch("/notification-rules/night", json=to_mail)
        assert (changed.status_code, changed.json()["to"], changed.json()["enabled"]) == (
            200,
            ["ops@example.org"],
            False,
        )
        on = await program.patch("/notification-rules/night", json={"enabled": True, "reason": "again"})
        listed = (await program.get("/notification-rules")).json()
        assert listed == {"items": [on.json()], "usableChannels": list(dependencies.channels)}
        assert listed["items"][0]["enabled"] is True

        tested = await program.post("/notification-rules/night/test")
        assert tested.status_code == 202, tested.text
        message = (await program.get(tested.headers["location"].removeprefix("/api/v1"))).json()
        assert (message, message["status"], message["test"]) == (tested.json(), "pending", True)
        assert (await program.get("/notification-messages")).json()["items"] == [message]

        assert (await program.delete("/notification-rules/night")).status_code == 422, "it needs a reason"
        removed = await program.delete("/notification-rules/night", params={"reason": "over"})
        assert (removed.status_code, removed.content) == (204, b"")
        for answer in (
            await program.delete("/notification-rules/night", params={"reason": "over"}),
            await program.patch("/notification-rules/night", json={"enabled": True, "reason": "x"}),
            await program.post("/notification-rules/night/test"),
            await program.get("/notification-rules/night"),
            await program.get("/notification-messages/x1"),
        ):
            assert answer.status_code == 404
        entries = (await program.get("/actions", params={"subject": "night"})).json()["items"]
        done = [entry["action"].removeprefix("notifications.") for entry in reversed(entries)]
        assert done == ["add", "change", "enable", "test", "remove"]
        assert "ops@example.org" not in json.dumps(entries)
    async with calling(dependencies, bearer(KEYS[Role.VIEWER])) as program:
        assert (await program.get("/notification-rules")).status_code == 200
        assert (await program.post("/notification-rules", json=new)).status_code == 403


async def test_anything_is_found_by_its_id(dependencies: ConsoleDependencies) -> None:
    await record_letters(dependencies, a_letter("o-4711"))
    async with calling(dependencies, ADMIN) as program:
        (letter,) = (await program.get("/dead-letters")).json()["items"]
        found = (await program.get("/search", params={"q": f" {letter['id']} "})).json()
        exact = [hit for hit in found["hits"] if hit["exact"]]
        assert [(hit["what"], hit["page"]) for hit in exact] == [
            ("dead letter", f"/dead-letters/letters/{letter['id']}")
        ]
        assert ("dead letters" in found["lookedIn"], found["notLookedIn"]) == (True, [])
        assert (await program.get("/search", params={"q": " "})).json()["errors"][0]["field"] == "q"
    async with calling(dependencies, bearer(KEYS[Role.ACCOUNTANT])) as program:
        limited = (await program.get("/search", params={"q": letter["id"]})).json()
        assert not [hit for hit in limited["hits"] if hit["what"] == "dead letter"]
        assert {"name": "dead letters", "failed": None, "needs": "letters:read"} in limited["notLookedIn"]


async def test_an_act_on_letters_says_first_what_it_is_about(dependencies: ConsoleDependencies) -> None:
    await record_letters(dependencies, a_letter("o1"), a_letter("o2"))
    async with calling(dependencies, ADMIN) as program:
        first, second = (letter["id"] for letter in (await program.get("/dead-letters")).json()["items"])
        asked = {"letters": {"all": True}, "dryRun": True, **WHY}
        for path, number in (("/replays", 2), ("/dead-letters/discard", 2), ("/dead-letters/restore", 0)):
            about = (await program.post(path, json=asked)).json()
            assert (about["letters"], about["impact"]["withoutOrder"], about["foreign"]) == (number, number, []), path
            assert about["until"] is not None
        listed = (await program.get("/dead-letters", params={"id": [first[:30], second]})).json()
        assert ({letter["id"] for letter in listed["items"]}, listed["total"]) == ({first, second}, 2)
        assert (await program.get("/dead-letters", params={"id": "nothing"})).status_code == 409
        preview = (await program.post("/dead-letters/preview", json={"letters": {"ids": [first]}})).json()
        assert [item["id"] for item in preview["items"]] == [first]
        body = {"body": '{"orderId": "o9"}', "dryRun": True, **WHY}
        locked = await program.post(f"/dead-letters/{first}/edit", json=body)
        assert locked.status_code == 422, locked.text
        assert (await program.post(f"/dead-letters/{first}/edit", json=body | {"unlock": ["x"]})).json()["errors"][0][
            "field"
        ] == "unlock"


async def test_consumers_are_listed_and_unknown_ones_refused(dependencies: ConsoleDependencies) -> None:
    async with calling(dependencies, ADMIN) as program:
        listed = (await program.get("/consumers")).json()["items"]
        assert {each["service"] for each in listed} >= {"order", "payment"}
        assert all(each["paused"] is None and each["problem"] for each in listed), "none of them runs"
        for what in ("pause", "resume"):
            assert (await program.post(f"/consumers/nobody/{what}", json=WHY)).status_code == 404
        away = await program.post("/consumers/payment/pause", json=WHY)
        assert away.status_code in (502, 503, 504), away.text
