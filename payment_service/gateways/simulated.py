"""A gateway for demonstration and tests, with a durable book of its own: it stands for a system outside.

The book is the collection `gateway_charges`, `_id` the idempotency key:

    {_id, outcome: CHARGED|DECLINED|VOIDED, amount (minor units), currency, token, chargeId, reason, refundedAt,
     attempts, createdAt}

VOIDED is a key that was refunded before a charge arrived. Money is held under a key while its outcome is CHARGED and
it has no `refundedAt`. Concurrent calls share one bulk write.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from payment_service.gateways.port import (
    Charged,
    ChargeRequest,
    Declined,
    GatewayTimeoutError,
    KeyReusedError,
    NothingCharged,
    Refunded,
)
from shared import database
from shared.clock import Clock
from shared.database import Collection, Document
from shared.group_commit import GroupCommit

COLLECTION = "gateway_charges"

DECLINED = "The card was declined"
CLOSED = "The payment was cancelled"
TOKEN_OK = "tok_ok"  # noqa: S105 - not a secret
TOKEN_DECLINED = "tok_declined"  # noqa: S105
TOKEN_TIMEOUT = "tok_timeout"  # noqa: S105

_GROUP_LIMIT = 500

ChargeResult = Charged | Declined | GatewayTimeoutError | KeyReusedError


def is_declined(token: str | None, key: str, failure_rate: float) -> bool:
    """Whether the simulated card refuses; without a special token that depends on the key alone, never on chance."""
    if token == TOKEN_DECLINED:
        return True
    if token in (TOKEN_OK, TOKEN_TIMEOUT):
        return False
    # 53 bits are what a float holds exactly: the fraction is below 1, so that a rate of 1 declines every key.
    fraction = int.from_bytes(sha256(key.encode()).digest()[:8]) >> 11
    return fraction / 2**53 < failure_rate


class SimulatedGateway:
    """Charges by the card's token; see `is_declined`. The first answer to a charge of `tok_timeout` is lost."""

    def __init__(self, book: Collection, *, failure_rate: float, clock: Clock) -> None:
        self._book = book
        self._failure_rate = failure_rate
        self._clock = clock
        self._charges: GroupCommit[ChargeRequest, ChargeResult] = GroupCommit(self._charge_all, limit=_GROUP_LIMIT)
        self._refunds: GroupCommit[str, Refunded | NothingCharged] = GroupCommit(self._refund_all, limit=_GROUP_LIMIT)

    async def charge(self, request: ChargeRequest) -> Charged | Declined:
        """Take the money, once per key; see Gateway."""
        return _raise_or_return(await self._charges.submit(request))

    async def look_up(self, request: ChargeRequest) -> Charged | Declined | None:
        """Say what became of the request; see Gateway."""
        try:
            entry = await self._book.find_one({"_id": request.key})
        except PyMongoError as error:
            raise _no_answer(error) from error
        return _raise_or_return(_result(request, entry)) if entry else None

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        """Return the whole charge, once per key, or close the key; see Gateway."""
        return await self._refunds.submit(request.key)

    async def drain(self) -> None:
        """Wait until every call that was made is answered."""
        await self._charges.drain()
        await self._refunds.drain()

    async def _charge_all(self, requests: Sequence[ChargeRequest]) -> list[ChargeResult]:
        now = self._clock()
        entries = {request.key: self._entry(request, now) for request in requests}
        try:
            repeated = await self._insert(list(entries.values()))
            earlier = await self._repeat(repeated) if repeated else {}
        except PyMongoError as error:
            raise _no_answer(error) from error
        return [_first_or_repeated(request, entries[request.key], earlier.get(request.key)) for request in requests]

    async def _insert(self, entries: Sequence[Document]) -> set[Any]:
        """Write the entries; returns the keys that are in the book already."""
        try:
            await self._book.insert_many(entries, ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def _repeat(self, keys: set[Any]) -> dict[str, Document]:
        among = {"_id": {"$in": list(keys)}}
        await self._book.update_many(among, {"$inc": {"attempts": 1}})
        return {entry["_id"]: entry async for entry in self._book.find(among)}

    async def _refund_all(self, keys: Sequence[str]) -> list[Refunded | NothingCharged]:
        writes = [UpdateOne({"_id": key}, _refund_or_close(self._clock()), upsert=True) for key in dict.fromkeys(keys)]
        try:
            await self._book.bulk_write(writes, ordered=False)
            book = {entry["_id"]: entry async for entry in self._book.find({"_id": {"$in": list(keys)}})}
        except PyMongoError as error:
            raise _no_answer(error) from error
        return [_refunded(book[key]) for key in keys]

    def _entry(self, request: ChargeRequest, now: datetime) -> Document:
        entry: Document = {
            "_id": request.key,
            "amount": request.amount,
            "currency": request.currency,
            "token": request.token,
            "attempts": 1,
            "createdAt": now,
        }
        if is_declined(request.token, request.key, self._failure_rate):
            return entry | {"outcome": "DECLINED", "reason": DECLINED}
        return entry | {"outcome": "CHARGED", "chargeId": f"ch_{uuid4().hex}"}


def _first_or_repeated(request: ChargeRequest, new: Document, earlier: Document | None) -> ChargeResult:
    if earlier is not None:
        return _result(request, earlier)
    if request.token == TOKEN_TIMEOUT:
        return GatewayTimeoutError("the gateway did not answer")
    return _result(request, new)


def _result(request: ChargeRequest, entry: Document) -> Charged | Declined | KeyReusedError:
    if entry["outcome"] == "VOIDED" or entry.get("refundedAt"):
        return Declined(CLOSED)
    if (entry["amount"], entry["currency"]) != (request.amount, request.currency):
        return KeyReusedError(f"{request.key} was used for {entry['amount']} {entry['currency']}")
    return Charged(entry["chargeId"]) if entry["outcome"] == "CHARGED" else Declined(entry["reason"])


def _refund_or_close(now: datetime) -> list[Document]:
    """An update that refunds a charge, leaves everything decided as it is, and closes a key that is not in the book."""
    unrefunded = {"$and": [{"$eq": ["$outcome", "CHARGED"]}, {"$not": ["$refundedAt"]}]}
    return [
        {
            "$set": {
                "refundedAt": {"$cond": [unrefunded, now, {"$ifNull": ["$refundedAt", "$$REMOVE"]}]},
                "outcome": {"$ifNull": ["$outcome", "VOIDED"]},
                "createdAt": {"$ifNull": ["$createdAt", now]},
            }
        }
    ]


def _refunded(entry: Document) -> Refunded | NothingCharged:
    if entry["outcome"] == "CHARGED":
        return Refunded(entry["chargeId"])
    return NothingCharged(entry.get("reason"))


def _raise_or_return(result: ChargeResult) -> Charged | Declined:
    if isinstance(result, Exception):
        raise result
    return result


def _no_answer(error: PyMongoError) -> Exception:
    """What a caller of an outside system would see when that system's database is away."""
    return GatewayTimeoutError(str(error)) if database.is_passing(error) else error
