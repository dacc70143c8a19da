"""The chain of an audit log: each entry has a number, the hash of the entry before it, and its own hash.

    seq   1, 2, 3 …, without a gap
    prev  the `hash` of the entry before; 64 zeros in the first one
    hash  SHA-256 of all other fields of the entry, in the form that `canonical` returns

So an entry that is changed no longer has its hash, one that is removed leaves a gap, and one that is added does not fit
between its neighbours. Somebody who can write the collection may compute all hashes from some entry on again, or cut
off the end: the newest hash is therefore written to the process's log every hour (`audit_log`). Pure: no I/O.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from shared.clock import to_rfc3339

Entry = dict[str, Any]

START = "0" * 64
"""The `prev` of the first entry."""
SEQ, PREV, HASH = "seq", "prev", "hash"


def canonical(entry: Mapping[str, Any]) -> bytes:
    """Return the one form of an entry from which its hash is computed: every field but `hash`, sorted, as JSON.

    A time is an object, so that it differs from the same text; anything that an entry never has is named by its type.
    """
    hashed = {name: value for name, value in entry.items() if name != HASH}
    return json.dumps(hashed, sort_keys=True, separators=(",", ":"), default=_as_json).encode()


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return {"$date": to_rfc3339(value)}
    return {"$type": type(value).__name__, "$text": repr(value)}


def hash_of(entry: Mapping[str, Any]) -> str:
    """Return the hash that an entry must have."""
    return hashlib.sha256(canonical(entry)).hexdigest()


def linked(entry: Mapping[str, Any], newest: Mapping[str, Any] | None) -> Entry:
    """Return a new entry as the one after `newest`, or as the first of the chain."""
    place = {SEQ: newest[SEQ] + 1, PREV: newest[HASH]} if newest else {SEQ: 1, PREV: START}
    chained = {**entry, **place}
    return {**chained, HASH: hash_of(chained)}


class Break(NamedTuple):
    """A place where a chain does not hold: the id of the entry, what was found there, and what was expected."""

    id: str
    kind: str
    found: str
    expected: str


@dataclass(slots=True)
class Verification:
    """Verifies the entries of one chain, which `add` takes in the order of `seq`."""

    count: int = 0
    _seq: int = 0
    _hash: str = START
    breaks: list[Break] = field(default_factory=list)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Check an entry against the one before it. An entry that was changed counts as it was for the next one."""
        self.count += 1
        seq, name = entry.get(SEQ), str(entry.get("_id"))
        if not isinstance(seq, int) or isinstance(seq, bool) or seq <= self._seq:
            self._report(name, "entry inserted", f"the number {seq!r} after {self._seq}", "consecutive numbers")
            return
        if seq != self._seq + 1:
            missing = f"{self._seq + 1}" if seq == self._seq + 2 else f"{self._seq + 1} to {seq - 1}"
            self._report(name, "entry removed", f"no entry {missing} before entry {seq}", "consecutive numbers")
        elif entry.get(PREV) != self._hash:
            found = f"entry {seq}, which does not follow entry {seq - 1} as that is now"
            self._report(name, "entry inserted or replaced", found, f"the hash of entry {seq - 1} in its field prev")
        if entry.get(HASH) != (right := hash_of(entry)):
            self._report(name, "entry changed", f"entry {seq}, whose fields do not have its hash", f"the hash {right}")
        self._seq, self._hash = seq, str(entry.get(HASH))

    def _report(self, name: str, kind: str, found: str, expected: str) -> None:
        self.breaks.append(Break(name, kind, found, expected))


def unchained(entry: Mapping[str, Any], began: datetime) -> Break | None:
    """Judge an entry without a number: only those from before the chain began may exist."""
    at = entry.get("at")
    if isinstance(at, datetime) and at <= began:
        return None
    when = to_rfc3339(at) if isinstance(at, datetime) else repr(at)
    found = f"an entry without a number, of {when}"
    return Break(str(entry.get("_id")), "entry inserted", found, f"none after {to_rfc3339(began)}, the chain's start")
