"""Edits of many letters, edits that change what a message is about, and letters that are taken back."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from operations.actions import list_actions
from operations.dead_letters.editing import InvalidBodyError
from operations.dead_letters.filters import Filters
from operations.dead_letters.patching import Patch, read_patch
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replays import NotPossibleError
from operations.dead_letters.service import DeadLetterService
from shared.clock import utc_now
from shared.contracts import DeadLetterHandled, RefundPayment
from shared.failpoints import GROUPS_REOPENED, LETTERS_CHOSEN, LETTERS_DECIDED, SimulatedCrashError
from tests.integration.test_dead_letters import (
    INBOX,
    DeadLetterHarness,
    accept,
    database,
    dead,
    dead_letters,
    patient,
)
from tests.support.consoles import a_letter

__all__ = ["database", "dead_letters", "patient"]  # fixtures, used by name

WRONG, RIGHT = b'{"orderId": "o1", "reason": 7}', b'{"orderId": "o1", "reason": "late"}'


def a_patch(*operations: dict[str, Any], unlocked: tuple[str, ...] = ()) -> Patch:
    return read_patch(json.dumps(operations), unlocked)


FIX = a_patch({"op": "test", "path": "/reason", "value": 7}, {"op": "replace", "path": "/reason", "value": "late"})


async def test_a_patch_edits_the_letters_to_which_it_applies_and_leaves_the_others(
    dead_letters: DeadLetterHarness,
) -> None:
    bodies = [WRONG, RIGHT, WRONG, b"not JSON", WRONG, RIGHT]
    await dead_letters.send_dead(*[dead(body, message_id=f"m{n}") for n, body in enumerate(bodies)])
    await dead_letters.record_waiting()
    service, replay_id = dead_letters.service, "0" * 16
    for _ in range(2):  # a form may be sent twice
        await service.start_edit(
            Filters(), FIX, by="ann", why="a number", rate=5000.0, careful=False, replay_id=replay_id
        )
    started = await service.replay(replay_id)
    assert started is not None
    assert started["status"] == "editing", "release 0.1.0 runs those that are running, and would send them unedited"
    done = await dead_letters.run_replay(replay_id)
    assert (done["status"], done["published"], done["total"]) == ("done", 3, 6)
    assert done["left"] == [
        {"reason": "the test of /reason failed", "letters": 2},
        {"reason": "the body is not JSON", "letters": 1},
    ]
    sent = await dead_letters.harness.take_from(INBOX, 3)
    assert {message.body for message in sent} == {b'{"orderId":"o1","reason":"late"}'}
    letters = await dead_letters.all()
    assert Counter(letter["status"] for letter in letters) == {"pending": 3, "dead": 3}
    for letter in letters:
        edited = letter["status"] == "pending"
        assert bool(letter["edits"]) == edited
        assert not edited or (bytes(letter["body"]), letter["replays"][0]["edited"]) == (WRONG, True)
    logged = [entry["outcome"] for entry in (await list_actions(dead_letters.database)).items]
    assert logged == [f"replay {replay_id}: up to 6 to edit and replay", "started"]


async def test_a_careful_edit_goes_past_what_it_leaves_as_it_is(dead_letters: DeadLetterHarness) -> None:
    bodies = [RIGHT] * 30 + [WRONG] * 12
    await dead_letters.send_dead(*[dead(body, message_id=f"m{n}") for n, body in enumerate(bodies)])
    await dead_letters.record_waiting()

    async def start(_: object, **how: Any) -> str:
        return await dead_letters.service.start_edit(Filters(), FIX, **how)

    done = await dead_letters.replay_carefully(accept, start)
    assert (done["status"], done["published"], done["careful"]) == ("done", 12, True)
    assert done["left"] == [{"reason": "the test of /reason failed", "letters": 30}]
    assert (await dead_letters.service.outcome(done["_id"])).in_brief() == "12 handled"


async def test_a_careful_edit_judges_letters_as_they_are_after_it_has_waited(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(WRONG), dead(RIGHT, message_id="m2"))
    letters = {letter["messageId"]: letter["_id"] for letter in await dead_letters.record_waiting()}
    a_second_earlier = [{"$set": {"lastFailedAt": {"$subtract": ["$lastFailedAt", 1000]}}}]
    await dead_letters.database["dead_letters"].update_one({"_id": letters["m1"]}, a_second_earlier)

    async def another_is_edited_meanwhile(messages: Sequence[RefundPayment]) -> Sequence[Any]:
        edit = {"$push": {"edits": {"body": WRONG}}, "$inc": {"changes": 1}}
        await dead_letters.database["dead_letters"].update_one({"_id": letters["m2"], "edits": []}, edit)
        return ()

    async def start(_: object, **how: Any) -> str:
        return await dead_letters.service.start_edit(Filters(), FIX, **how)

    done = await dead_letters.replay_carefully(another_is_edited_meanwhile, start)
    assert (done["status"], done["published"], done["left"]) == ("done", 2, [])


async def test_a_letter_that_changes_meanwhile_is_patched_as_it_is_then(
    dead_letters: DeadLetterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead_letters.send_dead(dead(WRONG), dead(WRONG, message_id="m2"))
    first, _ = await dead_letters.record_waiting()
    claim, late = LetterRecords.claim, b'{"orderId": "o1", "reason": 7, "x": 1}'

    async def another_is_faster(self: LetterRecords, *given: Any) -> bool:
        edit = {"$push": {"edits": {"body": late}}, "$inc": {"changes": 1}}
        await dead_letters.database["dead_letters"].update_one({"_id": first["_id"], "edits": []}, edit)
        return await claim(self, *given)

    monkeypatch.setattr(LetterRecords, "claim", another_is_faster)
    replay_id = await dead_letters.service.start_edit(Filters(), FIX, by="ann", why="w", careful=False)
    done = await dead_letters.run_replay(replay_id)
    assert (done["published"], done["left"]) == (2, [])
    bodies = sorted(message.body for message in await dead_letters.harness.take_from(INBOX, 2))
    assert bodies == [b'{"orderId":"o1","reason":"late","x":1}', b'{"orderId":"o1","reason":"late"}']


async def test_an_edit_of_nothing_is_refused_and_not_logged(dead_letters: DeadLetterHarness) -> None:
    with pytest.raises(NotPossibleError, match="no matching dead letter"):
        await dead_letters.service.start_edit(Filters(), FIX, by="ann", why="w")
    with pytest.raises(ValueError, match="reason"):
        await dead_letters.service.start_edit(Filters(), FIX, by="ann", why=" ")
    assert (await list_actions(dead_letters.database)).items == []


async def test_an_unlocked_edit_moves_a_letter_to_the_order_that_was_named(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(dead(b'{"orderId": "typo", "reason": "late"}'))
    (letter,) = await dead_letters.record_waiting()
    service, body = dead_letters.service, b'{"orderId": "right-1", "reason": "late"}'
    with pytest.raises(InvalidBodyError, match="must stay 'typo'"):
        await service.edit_and_replay(letter["_id"], body, by="ann", why="w")
    await dead_letters.run_replay(
        await service.edit_and_replay(letter["_id"], body, by="ann", why="w", unlocked=["orderId"])
    )
    (sent,) = await dead_letters.harness.take_from(INBOX, 1)
    assert (sent.body, sent.correlation_id) == (body, "right-1")
    stored = await dead_letters.stored(letter["_id"])
    assert stored["orderId"] == "right-1", "the letter is about the other order from now on"
    assert stored["edits"][0]["identities"] == {"orderId": ["typo", "right-1"]}
    assert bytes(stored["body"]) == b'{"orderId": "typo", "reason": "late"}', "the original is kept"
    for found_by in (Filters(order_id="right-1"), Filters(text="right-1")):
        assert [each["_id"] for each in (await service.page(found_by)).items] == [letter["_id"]]
    (entry,) = (await list_actions(dead_letters.database)).items
    assert "orderId typo → right-1" in entry["outcome"]
    with pytest.raises(InvalidBodyError, match="must stay 'right-1'"):
        await service.edit_and_replay(letter["_id"], b'{"orderId": "typo"}', by="ann", why="w")


async def test_a_discarded_letter_is_taken_back_as_what_it_then_is(dead_letters: DeadLetterHarness) -> None:
    await dead_letters.send_dead(*[dead(message_id=f"m{n}") for n in range(3)])
    dead_one, handled_one, waiting_one = [letter["_id"] for letter in await dead_letters.record_waiting()]
    service = dead_letters.service
    for letter_id in (handled_one, waiting_one):
        await dead_letters.replay(Filters(ids=(letter_id,)))
    assert (
        await service.discard(Filters(ids=(dead_one, handled_one, waiting_one)), by="ann", why="a mistake")
    ).number == 3
    own = (await dead_letters.stored(handled_one))["replays"][0]["messageId"]
    await dead_letters.records.record_handled([DeadLetterHandled(letter_id=handled_one, message_id=own)], utc_now())
    (group,) = await service.groups()
    await service.set_group_status(group.fingerprint, "resolved", by="ann")
    with pytest.raises(ValueError, match="reason"):
        await service.restore(Filters(), by="bob", why="")
    assert (await service.restore(Filters(type="order.created"), by="bob", why="not these")).number == 0
    assert [found.status for found in await service.groups()] == ["resolved"]
    assert (await service.restore(Filters(), by="bob", why="they were right")).number == 3
    assert [found.status for found in await service.groups()] == ["new"], "it has letters to decide on again"
    assert (await service.restore(Filters(), by="bob", why="again")).number == 0, "each is taken back once"
    letters = {letter["_id"]: letter for letter in await dead_letters.all()}
    assert [letters[each]["status"] for each in (dead_one, handled_one, waiting_one)] == ["dead", "handled", "pending"]
    (restored,) = letters[dead_one]["restored"]
    assert (restored["by"], restored["why"]) == ("bob", "they were right")
    assert (restored["discarded"]["by"], restored["discarded"]["why"]) == ("ann", "a mistake")
    assert letters[dead_one]["discarded"] is None
    logged = [
        (entry["by"], entry["action"], entry["outcome"]) for entry in (await list_actions(dead_letters.database)).items
    ]
    assert ("bob", "dead-letters.restore", "3 restored") in logged
    assert ("bob", "dead-letters.restore", "started") in logged
    assert (await service.discard(Filters(ids=(dead_one,)), by="ann", why="after all")).number == 1
    await service.restore(Filters(ids=(dead_one,)), by="bob", why="no")
    assert len((await dead_letters.stored(dead_one))["restored"]) == 2


@pytest.mark.parametrize(
    ("act", "points"), [("discard", (LETTERS_CHOSEN,)), ("restore", (LETTERS_CHOSEN, GROUPS_REOPENED))]
)
async def test_killed_at_every_step_and_run_again_it_decides_each_letter_once(
    dead_letters: DeadLetterHarness, act: str, points: tuple[str, ...]
) -> None:
    """One of the kills is in the middle of the write: it has changed some of the letters."""
    service = dead_letters.service
    await dead_letters.records.record([a_letter(f"o{n}") for n in range(6)], utc_now())
    (group,) = await service.groups()
    everything = Filters(group=group.fingerprint)
    if act == "restore":
        everything = replace(everything, status=("discarded",))
        assert (await service.discard(Filters(), by="bob", why="a mistake")).number == 6
        await service.set_group_status(group.fingerprint, "resolved", by="bob")
    before = {letter["_id"]: letter["changes"] for letter in await dead_letters.all()}
    some = tuple(before)[:2]
    for point in points:
        await killed_at(point, dead_letters, act, everything)
        assert {letter["_id"]: letter["changes"] for letter in await dead_letters.all()} == before
    for part, why in ((Filters(ids=some), "in part"), (everything, "the others"), (everything, "again")):
        await killed_at(LETTERS_DECIDED, dead_letters, act, part, why)
    assert (await getattr(service, act)(everything, by="ann", why="once more")) == (0, 0)
    # Run again as it was, it says what the interrupted attempts did. Whoever acts selects what failed until then.
    await killed_at(LETTERS_CHOSEN, dead_letters, act, replace(everything, until=utc_now()), "the others")
    everything = replace(everything, until=utc_now())
    assert (await getattr(service, act)(everything, by="ann", why="the others")) == (0, 4)
    assert (await getattr(service, act)(everything, by="ann", why="the others")) == (0, 0), "it was not interrupted"
    participle = {"discard": "discarded", "restore": "restored"}[act]
    outcomes = {entry["outcome"] for entry in (await list_actions(dead_letters.database)).items}
    bound = f"{everything.until:%Y-%m-%d %H:%M:%S} UTC"
    assert f"0 {participle} of those that failed before {bound}, after 4 by an earlier attempt" in outcomes

    for letter in await dead_letters.all():
        assert letter["changes"] == before[letter["_id"]] + 1
        assert letter["status"] == ("dead" if act == "restore" else "discarded")
        (entry,) = letter["restored"] if act == "restore" else [letter["discarded"]]
        assert (entry["by"], entry["why"]) == ("ann", "in part" if letter["_id"] in some else "the others")
    (group,) = await service.groups()
    assert (group.open, group.status) == (6 if act == "restore" else 0, "new")


async def test_an_attempt_counts_the_letters_of_its_own_selection(dead_letters: DeadLetterHarness) -> None:
    """Also where another selection, by as many ids, was decided by the same person for the same reason."""
    service = dead_letters.service
    await dead_letters.records.record([a_letter(f"o{n}") for n in range(10)], utc_now())
    ids = [letter["_id"] for letter in await dead_letters.all()]
    (group,) = await service.groups()
    one, other = Filters(ids=tuple(ids[:5])), Filters(ids=tuple(ids[5:]))
    assert one.subject != other.subject
    assert one.subject == Filters(ids=one.ids[::-1]).subject
    await killed_at(LETTERS_DECIDED, dead_letters, "discard", one)
    assert await service.discard(other, by="ann", why="-") == (5, 0)
    await service.restore(Filters(), by="bob", why="once more")
    # A group is its own subject, whatever else selects letters of it.
    part = Filters(group=group.fingerprint, order_id="o1")
    await killed_at(LETTERS_DECIDED, dead_letters, "discard", part)
    assert await service.discard(replace(part, order_id="o2"), by="ann", why="-") == (1, 0)
    await killed_at(LETTERS_DECIDED, dead_letters, "restore", part)
    assert await service.restore(replace(part, order_id="o2"), by="ann", why="-") == (1, 0)


async def killed_at(point: str, dead_letters: DeadLetterHarness, act: str, filters: Filters, why: str = "-") -> None:
    """Discard or restore letters in a process that is killed at this point."""

    def crash(reached: str) -> None:
        if reached == point:
            raise SimulatedCrashError(point)

    with pytest.raises(SimulatedCrashError):
        await getattr(DeadLetterService(dead_letters.database, crash), act)(filters, by="ann", why=why)
