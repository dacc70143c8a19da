"""Patches of many letters: which are patches, what they make of a letter, and what a difference shows."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpointer import JsonPointer

from operations.dead_letters.difference import differences, is_same
from operations.dead_letters.editing import locked_identities, with_identities
from operations.dead_letters.pages import MOST_NAMED, patched_page
from operations.dead_letters.patching import (
    MOST_OPERATIONS,
    Edit,
    InvalidPatchError,
    LeftOut,
    Patch,
    edited,
    patch_from_example,
    read_patch,
)
from shared.contracts import RefundPayment
from shared.topology import ORDER_INBOX, PAYMENT_INBOX

type_ = RefundPayment.routing_key


def a_letter(body: object, *edits: object, **changes: Any) -> dict[str, Any]:
    """A dead `payment.refund` with this body, or the bytes of it."""
    bodies = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (body, *edits)]
    letter = {
        "_id": "l1",
        "type": type_,
        "routingKey": type_,
        "queue": PAYMENT_INBOX,
        "body": bodies[0],
        "size": len(bodies[0]),
        "edits": [{"body": edit} for edit in bodies[1:]],
        "correlationId": "A",
        "lastFailedAt": 1,
    }
    return letter | changes


def a_patch(*operations: dict[str, Any], unlocked: tuple[str, ...] = ()) -> Patch:
    return read_patch(json.dumps(operations), unlocked)


def replace(path: str, value: object) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)

REASON = replace("/reason", "late")


def body_of(outcome: Edit | LeftOut) -> Any:
    assert isinstance(outcome, Edit), outcome
    return json.loads(outcome.body)


def reason_of(outcome: Edit | LeftOut) -> str:
    assert isinstance(outcome, LeftOut), outcome
    return outcome.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("{}", "not a list"),
        ("[]", "not a list of 1 to"),
        (json.dumps([REASON] * (MOST_OPERATIONS + 1)), "not a list of 1 to"),
        ("[1]", "operation 1 must be an object"),
        ('[{"op": "increase", "path": "/a"}]', "must be an object with an op"),
        ('[{"op": "add", "path": "/a"}]', r"operation 1 \(add\) needs 'value'"),
        ('[{"op": "move", "path": "/a"}]', r"operation 1 \(move\) needs 'from'"),
        ('[{"op": "remove", "path": "a"}]', "'path' is not a JSON pointer"),
        ('[{"op": "remove", "path": 1}]', "'path' is not a JSON pointer"),
        ('[{"op": "test", "path": "/a", "value": 1}]', "changes nothing"),
        ('[{"op": "test", "path": "/a"}]', r"operation 1 \(test\) needs 'value'"),
        ('[{"op": "test", "path": "/a", "absent": false}]', "it must be true"),
        ('[{"op": "test", "path": "/a", "absent": true, "value": 1}]', "only a test without a value"),
        ('[{"op": "add", "path": "/a", "absent": true, "value": 1}]', "only a test without a value"),
        ("[" + " " * 70_000 + "]", "too long"),
    ],
)
def test_what_is_no_patch_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidPatchError, match=reason):
        read_patch(text)


@pytest.mark.parametrize(
    "operation",
    [
        replace("/orderId", "B"),
        replace("/order_id", "B"),  # a receiver reads either spelling
        {"op": "remove", "path": "/orderId"},
        {"op": "move", "from": "/orderId", "path": "/other"},
        {"op": "copy", "from": "/other", "path": "/orderId"},
        {"op": "add", "path": "/orderId", "value": "B"},
    ],
)
def test_a_patch_that_touches_an_identity_is_refused_unless_it_is_unlocked(operation: dict[str, Any]) -> None:
    with pytest.raises(InvalidPatchError, match="touches orderId"):
        a_patch(operation)
    assert a_patch(operation, unlocked=("orderId",)).unlocked == ("orderId",)
    with pytest.raises(InvalidPatchError, match="touches orderId"):
        a_patch(operation, unlocked=("refundId",))
    with pytest.raises(InvalidPatchError, match="userId is no identity"):
        a_patch(operation, unlocked=("userId",))


def test_a_patch_cannot_replace_the_whole_body() -> None:
    with pytest.raises(InvalidPatchError, match="replaces the whole body"):
        a_patch(replace("", {"orderId": "B"}), unlocked=("orderId",))


def test_an_unlocked_identity_changes_and_the_edit_says_from_what_to_what() -> None:
    patch = a_patch(replace("/orderId", "B"), unlocked=("orderId",))
    outcome = edited(a_letter({"orderId": "A"}), patch)
    assert isinstance(outcome, Edit)
    assert outcome.identities == {"orderId": ["A", "B"]}
    # From now on, the other order is the one to keep.
    moved = a_letter({"orderId": "A"}, {"orderId": "B"})
    moved["edits"][0]["identities"] = {"orderId": ["A", "B"]}
    assert body_of(edited(moved, a_patch({"op": "add", "path": "/reason", "value": "x"})))["orderId"] == "B"


def test_it_says_why_a_letter_is_left_as_it_is() -> None:
    add = a_patch({"op": "add", "path": "/reason", "value": "late"})
    assert body_of(edited(a_letter({"orderId": "A", "reason": 7}), add)) == {"orderId": "A", "reason": "late"}
    assert reason_of(edited(a_letter(b"\xff"), add)) == "the body is not JSON"
    assert reason_of(edited(a_letter(b"[" * 100_000), add)) == "the body is not JSON"
    assert reason_of(edited(a_letter({"orderId": "A", "reason": "late"}), add)) == "the patch changes nothing in it"
    assert reason_of(edited(a_letter({"orderId": "A"}), a_patch(REASON))) == "replace: there is no place /reason"
    tested = a_patch({"op": "test", "path": "/reason", "value": 7}, REASON)
    assert reason_of(edited(a_letter({"orderId": "A", "reason": 8}), tested)) == "the test of /reason failed"
    wrong = edited(a_letter({"orderId": "A", "reason": "secret"}), a_patch(replace("/reason", 7)))
    assert reason_of(wrong) == "the body would not be valid: see reason"
    assert isinstance(wrong, LeftOut)
    assert wrong.details == "reason: must be a string", "a value may be personal"
    assert "too large for a patch" in reason_of(edited(a_letter({}) | {"body": None, "size": 10**7}, add))
    often = a_letter({"orderId": "A"}, *[{"orderId": "A", "reason": str(n)} for n in range(10)])
    assert "edited 10 times" in reason_of(edited(often, add))


def test_a_patch_is_applied_to_what_a_replay_would_send() -> None:
    letter = a_letter({"orderId": 7}, {"orderId": "A", "reason": 7})
    assert body_of(edited(letter, a_patch(REASON))) == {"orderId": "A", "reason": "late"}


def test_copies_cannot_grow_without_a_limit() -> None:
    doubling = [{"op": "copy", "from": "/x", "path": f"/x/{n}"} for n in range(60)]
    assert reason_of(edited(a_letter({"orderId": "A", "x": {}}), a_patch(*doubling))) == "the body would be too large"


def test_what_a_patch_adds_to_one_letter_is_not_changed_by_another() -> None:
    patch = a_patch(
        {"op": "add", "path": "/x", "value": {"seen": []}}, {"op": "copy", "from": "/orderId", "path": "/x/seen/-"}
    )
    for order in ("A", "B"):
        assert body_of(edited(a_letter({"orderId": order}, correlationId=order), patch))["x"] == {"seen": [order]}


def test_an_example_makes_a_patch_for_the_same_mistake_only() -> None:
    patch = read_patch(patch_from_example(b'{"orderId": "A", "reason": 7}', '{"orderId": "A", "reason": "late"}'))
    assert body_of(edited(a_letter({"orderId": "A", "reason": 7}), patch))["reason"] == "late"
    assert reason_of(edited(a_letter({"orderId": "A", "reason": 8}), patch)) == "the test of /reason failed"
    added = read_patch(patch_from_example(b'{"orderId": "A"}', '{"orderId": "A", "ownerId": "x"}'))
    assert body_of(edited(a_letter({"orderId": "A"}), added))["ownerId"] == "x"
    assert reason_of(edited(a_letter({"orderId": "A", "ownerId": "y"}), added)) == "the test of /ownerId failed"
    for value in (2**70, "\ud800"):
        with pytest.raises(InvalidPatchError, match="has a value that a patch cannot have"):
            patch_from_example(b"{}", json.dumps({"reason": value}))
    for wrong, why in (("{", "not JSON"), ('{"orderId":"A","reason":7}', "not changed")):
        with pytest.raises(InvalidPatchError, match=why):
            patch_from_example(b'{"orderId": "A", "reason": 7}', wrong)


NAMES = st.sampled_from(["a", "b", "-", "0", "a/b"])
NESTED = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, "", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(NAMES, NESTED, max_size=3)


def value_at(body: Any, pointer: str) -> Any:
    """The value at a place in a body, as JSON; None if there is none."""
    for part in JsonPointer(pointer).parts:
        if isinstance(body, list) and part.isdecimal() and int(part) < len(body):
            body = body[int(part)]
        elif isinstance(body, dict) and part in body:
            body = body[part]
        else:
            return None
    return json.dumps(body, sort_keys=True)


@given(BODIES, BODIES, st.one_of(BODIES, st.none()))
def test_a_patch_of_an_example_changes_a_body_only_if_it_has_the_same_mistake(
    before: dict[str, Any], after: dict[str, Any], other: dict[str, Any] | None
) -> None:
    old, new = ({"orderId": "A", "x": each} for each in (before, after))
    try:
        patch = read_patch(patch_from_example(json.dumps(old).encode(), json.dumps(new)))
    except InvalidPatchError:
        return
    assert is_same(body_of(edited(a_letter(old), patch)), new), "it makes what was written"
    third = {"orderId": "A", "x": old["x"] if other is None else other} | {"note": "of another letter"}
    outcome = edited(a_letter(third), patch)
    touched = [change.path for change in differences(json.dumps(old).encode(), json.dumps(new).encode())]
    has_the_mistake = all(value_at(third, path) == value_at(old, path) for path in touched)
    if isinstance(outcome, Edit):
        assert has_the_mistake
        assert all(value_at(json.loads(outcome.body), path) == value_at(new, path) for path in touched)
    assert other is not None or isinstance(outcome, Edit), "what else is in a body does not matter"


POINTERS = st.sampled_from(["/reason", "/a", "/a/0", "/a/-", "/a/b", "/reason/x", "/note", "/a~1b", "/a/99"])
OPERATIONS = st.one_of(
    st.builds(
        lambda op, path, value: {"op": op, "path": path, "value": value},
        st.sampled_from(["add", "replace", "test"]),
        POINTERS,
        JSON,
    ),
    st.builds(lambda path: {"op": "remove", "path": path}, POINTERS),
    st.builds(
        lambda op, source, path: {"op": op, "from": source, "path": path},
        st.sampled_from(["move", "copy"]),
        POINTERS,
        POINTERS,
    ),
)


@given(
    st.dictionaries(st.sampled_from(["reason", "a", "note", "x"]), JSON, max_size=4), st.lists(OPERATIONS, min_size=1)
)
def test_any_patch_edits_a_letter_or_says_why_not(body: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    try:
        patch = read_patch(json.dumps(operations))
    except InvalidPatchError:
        return
    letter = a_letter({"orderId": "A"} | body)
    before = copy.deepcopy(letter)
    outcome = edited(letter, patch)
    assert letter == before, "the letter is not changed"
    assert edited(letter, patch) == outcome, "the same again, whichever process asks"
    if isinstance(outcome, LeftOut):
        assert outcome.reason
        return
    RefundPayment.model_validate_json(outcome.body)
    assert json.loads(outcome.body)["orderId"] == "A", "no patch moves a letter to another order"
    assert differences(letter["body"], outcome.body), "what an operator confirms is never empty"


@given(st.lists(st.sampled_from(["wrong", "right", "other"]), max_size=30), st.integers(1, 30))
def test_each_letter_of_a_page_is_sent_or_left_with_its_reason(kinds: list[str], most: int) -> None:
    patch = a_patch({"op": "test", "path": "/reason", "value": "wrong"}, replace("/reason", "right"))
    letters = [a_letter({"orderId": "A", "reason": kind}, _id=f"l{n}", lastFailedAt=n) for n, kind in enumerate(kinds)]
    page = patched_page(letters, patch, most)
    assert page.edits is not None
    sent = [letter["_id"] for letter in page.letters]
    assert sent == list(page.edits) == [f"l{n}" for n, kind in enumerate(kinds) if kind == "wrong"][:most]
    assert sorted([*sent, *(letter_id for letter_id, _ in page.left)]) == sorted(each["_id"] for each in page.looked_at)
    assert list(page.looked_at) == letters[: len(page.looked_at)], "none is skipped"
    assert len(page.looked_at) == len(letters) or len(sent) == most
    if not page.is_empty:
        progress = page.progress({"left": [{"reason": "the test of /reason failed", "letters": 3}], "leftLetters": []})
        assert progress["behind"] == [len(page.looked_at) - 1, f"l{len(page.looked_at) - 1}"]
        if page.left:
            assert progress["left"] == [{"reason": "the test of /reason failed", "letters": 3 + len(page.left)}]


def test_a_replay_names_so_many_letters_that_it_left_and_counts_all() -> None:
    letters = [a_letter({"orderId": "A"}, _id=f"l{n}") for n in range(MOST_NAMED + 50)]
    progress = patched_page(letters, a_patch(REASON), 10).progress({"left": [], "leftLetters": []})
    assert progress["left"] == [{"reason": "replace: there is no place /reason", "letters": MOST_NAMED + 50}]
    assert len(progress["leftLetters"]) == MOST_NAMED


@given(JSON, JSON)
def test_a_difference_is_empty_for_the_same_value_only(old: Any, new: Any) -> None:
    assert is_same(old, copy.deepcopy(old))
    assert is_same(old, new) == (json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True))


def test_a_difference_names_each_field_and_hides_what_is_hidden() -> None:
    before, after = (
        b'{"a": 1, "token": "tok_123456", "l": [1, 2]}',
        b'{"a": 1.0, "token": "tok_9", "l": [1], "b": null}',
    )
    assert [change.in_words() for change in differences(before, after)] == [
        "/a: 1 → 1.0",
        '/token: "tok_123456" → "tok_9"',
        "/l/1: 2 → nothing",
        "/b: nothing → null",
    ]
    assert "tok_" not in str(differences(before, after, masked=True))
    assert [change.path for change in differences(before, after, masked=True)] == ["/a", "/token", "/l/1", "/b"]
    (whole,) = differences(b"not JSON", b'{"orderId": "A"}')
    assert (whole.path, whole.before) == ("", "not JSON")
    (long,) = differences(b'{"x": ""}', json.dumps({"x": "y" * 1000}).encode())
    assert len(long.after or "") == 300


def test_identities_are_locked_where_they_are_valid() -> None:
    assert locked_identities(a_letter({"orderId": "A", "reason": "x"})) == {"orderId": "A"}
    assert locked_identities(a_letter({"orderId": 7})) == {}, "an edit has to give it a valid one"
    assert locked_identities(a_letter(b"\xff")) == {}
    answer = {"type": "payment.processed", "routingKey": "payment.processed", "queue": ORDER_INBOX}
    assert locked_identities(a_letter({"orderId": "A", "transactionId": "t1"}) | answer) == {
        "orderId": "A",
        "transactionId": "t1",
    }


def test_what_is_locked_is_put_back_unless_it_is_unlocked() -> None:
    locked = {"orderId": "A", "run": 2}
    assert json.loads(with_identities('{"reason": "x"}', locked, {})) == {**locked, "reason": "x"}
    changed = with_identities('{"reason": "x"}', locked, {"orderId": "B", "run": "3"})
    assert json.loads(changed) == {"orderId": "B", "run": 3, "reason": "x"}
    whole = '{"run": 2, "orderId":  "A"}'
    assert with_identities(whole, locked, {}) == whole.encode(), "as it was written"
    assert with_identities("no JSON", locked, {}) == b"no JSON"
