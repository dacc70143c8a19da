"""The chain of an audit log: whatever is done to its entries is named."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.audit_chain import HASH, PREV, START, Break, Entry, Verification, canonical, hash_of, linked, unchained
from shared.audit_log import Flood

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)

values = st.one_of(st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.none(), st.just(NOW))
fields = st.dictionaries(st.sampled_from(["by", "why", "action", "subject", "outcome", "at"]), values, min_size=1)
chains = st.lists(fields, min_size=1, max_size=8)


def chained(entries: list[dict[str, Any]]) -> list[Entry]:
    chain: list[Entry] = []
    for number, entry in enumerate(entries):
        chain.append(linked({"_id": f"e{number}", **entry}, chain[-1] if chain else None))
    return chain


def breaks(entries: list[Entry]) -> list[Break]:
    verification = Verification()
    for entry in entries:
        verification.add(entry)
    return verification.breaks


@given(chains)
def test_a_chain_holds(entries: list[dict[str, Any]]) -> None:
    chain = chained(entries)
    assert breaks(chain) == []
    assert [entry["seq"] for entry in chain] == list(range(1, len(entries) + 1))
    assert chain[0][PREV] == START


@given(chains, st.data())
def test_an_entry_that_was_changed_is_named_alone(entries: list[dict[str, Any]], data: st.DataObject) -> None:
    chain = chained(entries)
    place = data.draw(st.integers(0, len(chain) - 1))
    chain[place] = {**chain[place], "by": "somebody else"}
    assert [(one.id, one.kind) for one in breaks(chain)] == [(f"e{place}", "entry changed")]


@given(st.lists(fields, min_size=2, max_size=8), st.data())
def test_an_entry_that_was_removed_is_named_by_its_successor(
    entries: list[dict[str, Any]], data: st.DataObject
) -> None:
    chain = chained(entries)
    place = data.draw(st.integers(0, len(chain) - 2))
    del chain[place]
    found = breaks(chain)
    assert [(one.id, one.kind) for one in found] == [(f"e{place + 1}", "entry removed")]
    assert f"no entry {place + 1} before entry {place + 2}" in found[0].found


@given(chains, st.data())
def test_an_entry_that_was_replaced_by_one_with_a_right_hash_breaks_the_next(
    entries: list[dict[str, Any]], data: st.DataObject
) -> None:
    chain = chained([*entries, {"by": "last"}])
    place = data.draw(st.integers(0, len(chain) - 2))
    forged = {**chain[place], "why": "forged", "by": "forger"}
    chain[place] = {**forged, HASH: hash_of(forged)}
    assert [(one.id, one.kind) for one in breaks(chain)] == [(f"e{place + 1}", "entry inserted or replaced")]


@given(chains, st.data())
def test_an_entry_that_was_inserted_is_named(entries: list[dict[str, Any]], data: st.DataObject) -> None:
    chain = chained(entries)
    place = data.draw(st.integers(0, len(chain) - 1))
    chain.insert(place + 1, {**chain[place], "_id": "inserted"})
    assert [(one.id, one.kind) for one in breaks(chain)] == [("inserted", "entry inserted")]


@given(fields)
def test_the_order_of_fields_does_not_matter(entry: dict[str, Any]) -> None:
    assert canonical(entry) == canonical(dict(reversed(entry.items())))


def test_values_that_look_alike_differ() -> None:
    alike = (1, 1.0, "1", True, None, "null", NOW, "2026-01-31T09:30:00.000Z", b"1")
    assert len({canonical({"why": value}) for value in alike}) == len(alike)


def test_entries_of_an_earlier_release_are_accepted_only_from_before_the_chain() -> None:
    assert unchained({"_id": "old", "at": NOW - timedelta(days=1)}, NOW) is None
    late = unchained({"_id": "late", "at": NOW + timedelta(seconds=1)}, NOW)
    assert late is not None
    assert (late.id, late.kind) == ("late", "entry inserted")
    assert unchained({"_id": "without a time"}, NOW) is not None


def test_a_flood_of_refusals_becomes_a_sum() -> None:
    flood = Flood(3)
    assert [flood.passes(second) for second in (0, 1, 2, 3, 59, 60)] == [True, True, True, False, False, True]
    assert (flood.take_suppressed(), flood.take_suppressed()) == (2, 0)
