"""The console's acts on many dead letters at once: what they concern, what they do, and who may do them."""

import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import orjson
import pytest

from operations.actions import list_actions
from operations.approvals.policy import ApprovalPolicy
from operations.approvals.records import ApprovalRecords
from operations.console import ConsoleDependencies
from operations.console.approvals import Executor
from operations.dead_letters.filters import Filters
from operations.dead_letters.service import DeadLetterService
from operations.sign_in.person import Person
from shared.access.permissions import Role
from shared.database import Document
from tests.support.access import KEYS, bearer
from tests.support.consoles import BY_ADMIN, a_letter, console_dependencies, hidden, pages_of, record_letters
from tests.support.servers import Servers, drop_databases

OpenDependencies = Callable[..., AbstractAsyncContextManager[ConsoleDependencies]]

WHY = {"why": "the shop sent a word"}
REFUND: dict[str, Any] = {"queue": "payment.inbox", "routing_key": "payment.refund"}
FIX = '[{"op": "replace", "path": "/reason", "value": "late"}]'


@pytest.fixture(scope="module")
async def prefix(servers: Servers) -> AsyncIterator[str]:
    """The prefix of the databases of all tests here: creating the indexes takes longer than most tests."""
    created = f"t{secrets.token_hex(8)}"
    yield created
    await drop_databases(servers.mongodb_url, created)


@pytest.fixture
async def open_dependencies(servers: Servers, prefix: str) -> OpenDependencies:
    async with console_dependencies(servers.mongodb_url, servers.amqp_url, prefix) as found:
        for database in (found.operations, found.client[f"{prefix}_orders"]):
            for name in await database.list_collection_names():
                await database[name].delete_many({})
    return lambda **options: console_dependencies(servers.mongodb_url, servers.amqp_url, prefix, **options)


@pytest.fixture
async def dependencies(open_dependencies: OpenDependencies) -> AsyncIterator[ConsoleDependencies]:
    async with open_dependencies() as found:
        yield found


@pytest.fixture
async def pages(dependencies: ConsoleDependencies) -> AsyncIterator[httpx.AsyncClient]:
    async with pages_of(dependencies) as client:
        yield client


async def letters_of(dependencies: ConsoleDependencies, *reasons: object) -> dict[str, str]:
    """Record a refund of an order of 10.00 USD for each of these reasons; return the letters' ids by order."""
    names = [f"o{number}" for number in range(len(reasons))]
    orders = [
        {"_id": name, "userId": f"u{n % 2}", "totalAmount": 1000, "currency": "USD"} for n, name in enumerate(names)
    ]
    await dependencies.orders.insert_many(orders)
    bodies = [orjson.dumps({"orderId": name, "reason": reason}) for name, reason in zip(names, reasons, strict=True)]
    await record_letters(
        dependencies, *[a_letter(name, body=body, **REFUND) for name, body in zip(names, bodies, strict=True)]
    )
    found = (await DeadLetterService(dependencies.operations).page(Filters(), limit=100)).items
    return {letter["orderId"]: letter["_id"] for letter in found}


async def counts(dependencies: ConsoleDependencies) -> dict[str, int]:
    found = await DeadLetterService(dependencies.operations).counts()
    return {status: number for status, number in found.items() if number}


async def logged(dependencies: ConsoleDependencies) -> list[Document]:
    return (await list_actions(dependencies.operations)).items


async def test_ticked_letters_are_discarded_and_restored(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    ids = await letters_of(dependencies, "a", "b", "c")
    await record_letters(dependencies, a_letter("unknown", **REFUND), a_letter("", body=b"?", **REFUND))
    every = [letter["_id"] for letter in (await DeadLetterService(dependencies.operations).page(Filters())).items]
    listed = (await pages.get("/dead-letters/list")).text
    assert all(f'name="letter" value="{letter_id}"' in listed for letter_id in every)
    assert 'formaction="/dead-letters/many/discard"' in listed
    asked = (await pages.get("/dead-letters/many/discard", params={"letter": every})).text
    assert "<h1>Discard 5 dead letters, 3 orders of 2 customers, 30.00 USD</h1>" in asked
    assert "; 2 letters lead to no known order" in asked
    assert await counts(dependencies) == {"dead": 5}
    two = (await pages.get("/dead-letters/many/discard", params={"letter": [ids["o0"], ids["o1"]]})).text
    assert "Discard 2 dead letters</button>" in two
    done = await pages.post("/dead-letters/many/discard", data=hidden(two) | WHY)
    assert done.headers["location"] == "/dead-letters/list?status=discarded"
    assert await counts(dependencies) == {"dead": 3, "discarded": 2}
    again = await pages.post("/dead-letters/many/discard", data=hidden(two) | WHY)
    assert (again.status_code, "all of them are already" in again.text) == (409, True)
    entry, before = (await logged(dependencies))[:2]
    assert (entry["by"], entry["why"], entry["action"]) == (BY_ADMIN, WHY["why"], "dead-letters.discard")
    assert (entry["outcome"], before["outcome"]) == ("2 discarded", "started")

    back = (await pages.get("/dead-letters/list?status=discarded")).text
    assert 'formaction="/dead-letters/many/restore"' in back
    assert 'formaction="/dead-letters/many/replay"' not in back
    selected = {"matching": "1", "status": "discarded"}
    form = (await pages.get("/dead-letters/many/restore", params=selected)).text
    assert "<h1>Restore 2 dead letters, 2 orders of 2 customers, 20.00 USD</h1>" in form
    assert (await pages.post("/dead-letters/many/restore", data=hidden(form) | WHY)).status_code == 303
    assert await counts(dependencies) == {"dead": 5}
    assert "Restored by" in (await pages.get(f"/dead-letters/letters/{ids['o0']}")).text


async def test_eighty_bodies_with_one_mistake_are_one_edit(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    ids = await letters_of(dependencies, *[7] * 80, "right", "right")
    service = DeadLetterService(dependencies.operations)
    (group,) = await service.groups()
    assert "Edit all…" in (await pages.get(f"/dead-letters/groups/{group.fingerprint}")).text
    selected = {"matching": "1", "status": "dead", "group": group.fingerprint}
    form = (await pages.get("/dead-letters/many/edit", params=selected)).text
    assert "<h1>Edit 82 dead letters, 82 orders of 2 customers, 820.00 USD</h1>" in form
    assert "{\n  &#34;reason&#34;: 7\n}" in form, "an example, without what is locked"
    for wrong_patch, why in (("{}", "not a list"), ('[{"op":"remove","path":"/orderId"}]', "touches orderId")):
        wrong = await pages.post("/dead-letters/many/edit/preview", data=hidden(form) | {"patch": wrong_patch})
        assert (wrong.status_code, why in wrong.text) == (422, True), wrong.text

    example = {"example": '{"reason": "late"}', "letter": ids["o81"]}
    previewed = await pages.post("/dead-letters/many/edit/preview", data=hidden(form) | example)
    shown = previewed.text
    assert "80 letters changed, 2 left as they are" in shown
    assert '<td class="num">2</td><td class="break">the test of /reason failed</td>' in shown
    assert '<td class="num">80</td><td class="break">payment nothing → VOIDED, sends payment.refunded' in shown
    assert '<del>7</del></td><td class="break"><ins>&#34;late&#34;</ins>' in shown
    assert shown.count("Left as it is: ") == 1, "the letter that was asked for"
    assert await service.replays() == []
    patch = {"patch": '[{"op":"test","path":"/reason","value":7},{"op":"replace","path":"/reason","value":"late"}]'}
    confirmed: dict[str, str] = {**hidden(shown), **patch, **WHY, "careful": "true"}
    other = confirmed | {"patch": FIX}
    changed = await pages.post("/dead-letters/many/edit", data=other)
    assert (changed.status_code, "have changed since the preview" in changed.text) == (409, True)
    assert "82 letters changed" in changed.text
    assert await service.replays() == []

    for address in ("/dead-letters/many/edit/preview", "/dead-letters/many/edit"):
        both = await pages.post(address, data=confirmed | {"example": '{"reason": "later"}'})
        assert (both.status_code, "the example is changed too" in both.text) == (422, True), address
        assert "later" in both.text, "what was written is still there"
    same = {"example": '{\r\n  "reason": 7\r\n}\r\n'}
    answers = [await pages.post("/dead-letters/many/edit", data=confirmed | same) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    (replay,) = await service.replays()
    assert (replay["total"], replay["careful"], replay["status"]) == (82, True, "editing")
    text = (await pages.get(answers[0].headers["location"])).text
    assert "each edited by a patch, carefully" in text
    assert "&#34;value&#34;:&#34;late&#34;" in text
    entry = (await logged(dependencies))[0]
    assert (entry["by"], entry["why"], entry["action"]) == (BY_ADMIN, WHY["why"], "dead-letters.edit")
    assert entry["subject"] == group.fingerprint


async def test_a_patch_may_change_what_messages_are_about_only_if_its_name_is_typed(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await letters_of(dependencies, "a", "b")
    form = hidden((await pages.get("/dead-letters/many/edit", params={"matching": "1"})).text)
    patch = {"patch": '[{"op": "replace", "path": "/orderId", "value": "other"}]'}
    for typed, status in (("", 422), ("orderid", 422), ("orderId", 200)):
        sent = await pages.post("/dead-letters/many/edit/preview", data=form | patch | {"unlock": typed})
        assert sent.status_code == status, typed
    confirmed = hidden(sent.text) | patch | WHY
    refused = await pages.post("/dead-letters/many/edit", data=confirmed)
    assert (refused.status_code, "touches orderId" in refused.text) == (422, True)
    assert (await pages.post("/dead-letters/many/edit", data=confirmed | {"unlock": "orderId"})).status_code == 303
    assert (await logged(dependencies))[0]["outcome"].endswith("orderId unlocked")


async def test_ticked_letters_are_replayed_after_a_preview(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    ids = await letters_of(dependencies, "a", 7, "c")
    service, some = DeadLetterService(dependencies.operations), {"letter": [ids["o0"], ids["o1"]]}
    form = (await pages.get("/dead-letters/many/replay", params=some)).text
    assert "<h1>Replay 2 dead letters, 2 orders of 2 customers, 20.00 USD</h1>" in form
    assert "fails again: PoisonError: not a valid payment.refund" in form
    data = hidden(form) | WHY | {"rate": "50"}
    answers = [await pages.post("/dead-letters/many/replay", data=data) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    (replay,) = await service.replays()
    assert (replay["total"], replay["rate"], replay["careful"]) == (2, 50, False)


async def test_what_a_form_does_not_show_is_not_done(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient
) -> None:
    await letters_of(dependencies, "a", "b")
    form = hidden((await pages.get("/dead-letters/many/discard", params={"matching": "1"})).text)
    await dependencies.orders.update_many({}, {"$set": {"totalAmount": 5000}})
    changed = await pages.post("/dead-letters/many/discard", data=form | WHY)
    assert (changed.status_code, "The letters have changed" in changed.text) == (409, True)
    assert "Discard 2 dead letters, 2 orders of 2 customers, 100.00 USD" in changed.text
    assert await counts(dependencies) == {"dead": 2}
    await record_letters(dependencies, a_letter("o9", **REFUND))
    assert (await pages.post("/dead-letters/many/discard", data=hidden(changed.text) | WHY)).status_code == 303
    assert await counts(dependencies) == {"dead": 1, "discarded": 2}, "what failed since was not shown"
    assert (await pages.get("/dead-letters/many/discard")).status_code == 409
    for status in ("discarded", "handled", "pending"):
        none = await pages.get("/dead-letters/many/discard", params={"matching": "1", "status": status})
        assert none.status_code == 409, status
    assert (await pages.get("/dead-letters/many/restore", params={"matching": "1"})).status_code == 409
    for wrong in ({"outcome": "failed"}, {"outcome": "gone", "replay": "r1"}, {"status": "gone"}, {"since": "x"}):
        for address in ("list", "many/replay", "many/edit"):
            asked = await pages.get(f"/dead-letters/{address}", params={"matching": "1"} | wrong)
            assert asked.status_code == 422, (address, wrong)
    hostile = {"selection": '{"ids": [], "service": {"$gt": ""}}', "confirmed": "", "token": "0" * 16}
    for act in ("replay", "discard", "restore", "edit"):
        for selection in (hostile["selection"], '{"status": ["gone"]}', '{"outcome": "failed"}'):
            sent = await pages.post(f"/dead-letters/many/{act}", data=WHY | hostile | {"selection": selection})
            assert sent.status_code == 422, (act, selection)


@pytest.mark.parametrize(
    ("role", "allowed"), [(Role.VIEWER, ()), (Role.OPERATOR, ("replay", "discard", "restore")), (Role.MANAGER, ())]
)
async def test_each_act_needs_its_permission(
    dependencies: ConsoleDependencies, pages: httpx.AsyncClient, role: Role, allowed: tuple[str, ...]
) -> None:
    ids, caller = await letters_of(dependencies, "a"), bearer(KEYS[role])
    for act in ("replay", "edit", "discard", "restore"):
        asked = await pages.get(f"/dead-letters/many/{act}", params={"letter": [ids["o0"]]}, headers=caller)
        assert (asked.status_code != 403) == (act in allowed), act
        sent = await pages.post(f"/dead-letters/many/{act}", data=WHY, headers=caller)
        assert (sent.status_code != 403) == (act in allowed), act
    (group,) = await DeadLetterService(dependencies.operations).groups()
    listed = (await pages.get(f"/dead-letters/groups/{group.fingerprint}", headers=caller)).text
    offered = [act for act in ("replay", "edit", "discard", "restore") if f"/dead-letters/many/{act}" in listed]
    assert tuple(offered) == allowed
    assert (await pages.post("/dead-letters/many/edit/preview", headers=caller)).status_code == 403


async def test_more_than_ticked_letters_may_need_a_second_person(open_dependencies: OpenDependencies) -> None:
    policy = ApprovalPolicy(None, frozenset({"dead-letters.replay", "dead-letters.discard"}))
    async with (
        open_dependencies(approval_policy=policy) as dependencies,
        pages_of(dependencies) as pages,
    ):
        ids = await letters_of(dependencies, 7, 7, 7)
        given: dict[str, dict[str, str]] = {
            "replay": {},
            "discard": {},
            "edit": {"patch": FIX, "unlock": "refundId"},
        }
        for act, more in given.items():
            form = (await pages.get(f"/dead-letters/many/{act}", params={"matching": "1"})).text
            assert "This needs a second person" in form
            if act == "edit":
                form = (await pages.post("/dead-letters/many/edit/preview", data=hidden(form) | more)).text
            sent = await pages.post(f"/dead-letters/many/{act}", data=hidden(form) | more | WHY)
            assert sent.headers["location"] == "/approvals", act
        assert await counts(dependencies) == {"dead": 3}
        records = ApprovalRecords(dependencies.operations, dependencies.clock)
        asked = {record["action"]: record["_id"] for record in await records.newest(10)}
        shown = await pages.get("/approvals")
        assert "&#34;path&#34;:&#34;/reason&#34;" in shown.text, "who approves sees the patch"
        assert "refundId unlocked" in shown.text
        assert len(re.findall(r"Letters: until 2\d{3}-[^<·]+ · 3 now<", shown.text)) == 3
        assert "/reason" not in (await pages.get("/approvals", headers=bearer(KEYS[Role.OPERATOR]))).text
        await records.decide(asked["dead-letters.edit"], Person("b", "boris", frozenset({Role.ADMIN})), approve=True)
        await Executor(dependencies).work()
        (replay,) = await DeadLetterService(dependencies.operations).replays()
        assert (replay["status"], replay["total"], "approved by boris" in replay["by"]) == ("editing", 3, True)
        one = (await pages.get("/dead-letters/many/discard", params={"letter": [ids["o0"]]})).text
        assert "This needs a second person" not in one
        assert (await pages.post("/dead-letters/many/discard", data=hidden(one) | WHY)).status_code == 303
        assert await counts(dependencies) == {"dead": 2, "discarded": 1}
