"""A gateway for the demo and the tests: it plays an external system, with durable records.

Its records are the collection `gateway_charges`, with the idempotency key as `_id`:

    {_id, outcome: CHARGED|AUTHORIZED|DECLINED|VOIDED, amount (minor units), currency, token, chargeId, reason,
     refundedAt, attempts, createdAt, captureRefused, parts: [{refundId, amount, at}], partsAmount, refusedPart}

VOIDED is a key that was refunded before a charge arrived, or before its authorisation was captured. Money is held
under a key while its outcome is AUTHORIZED, or CHARGED without a `refundedAt`. `parts` were returned before,
`partsAmount` together. Concurrent calls share one bulk write.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    GatewayKeyReusedError,
    GatewayTimeoutError,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.refusals import CLOSED, DECLINED, EXPIRED
from shared import database
from shared.clock import Clock
from shared.database import Collection, Document
from shared.group_commit import GroupCommit

COLLECTION = "gateway_charges"

TOKEN_OK = "tok_ok"  # noqa: S105 - not a secret
TOKEN_DECLINED = "tok_declined"  # noqa: S105
TOKEN_TIMEOUT = "tok_timeout"  # noqa: S105
TOKEN_REFUND_REFUSED = "tok_refund_refused"  # noqa: S105
TOKEN_CAPTURE_REFUSED = "tok_capture_refused"  # noqa: S105
TOKEN_EXPIRES = "tok_authorization_expires"  # noqa: S105
_NEVER_DECLINED = (TOKEN_OK, TOKEN_TIMEOUT, TOKEN_REFUND_REFUSED, TOKEN_CAPTURE_REFUSED, TOKEN_EXPIRES)

PART_REFUSED = "The card's bank refused the refund"
CAPTURE_REFUSED = "The card's bank refused the capture"

_GROUP_LIMIT = 500

ChargeResult = Charged | Authorized | Declined | GatewayTimeoutError | GatewayKeyReusedError
CaptureResult = Charged | CaptureRefused | GatewayTimeoutError


def is_declined(token: str | None, key: str, failure_rate: float) -> bool:
    """Return whether the card is declined: by its token, else by a hash of the key, so that every retry agrees."""
    if token == TOKEN_DECLINED:
        return True
    if token in _NEVER_DECLINED:
        return False
    # A float holds 53 bits exactly, so the fraction stays below 1 and a rate of 1 declines every key.
    fraction = int.from_bytes(sha256(key.encode()).digest()[:8]) >> 11
    return fraction / 2**53 < failure_rate


class SimulatedGateway:
    """A Gateway that charges by the card's token (see `is_declined`).

    `tok_timeout` loses the first answer to its charge, to its capture, and to each of its refunds in part.
    `tok_refund_refused` is refused its first refund in part, and `tok_capture_refused` its first capture. What
    `tok_authorization_expires` authorises has expired when it is captured.
    """

    def __init__(self, records: Collection, *, failure_rate: float, clock: Clock) -> None:
        self._records = records
        self._failure_rate = failure_rate
        self._clock = clock
        self._charges: GroupCommit[ChargeRequest, ChargeResult] = GroupCommit(self._charge_all, limit=_GROUP_LIMIT)
        self._captures: GroupCommit[ChargeRequest, CaptureResult] = GroupCommit(self._capture_all, limit=_GROUP_LIMIT)
        self._refunds: GroupCommit[str, Refunded | NothingCharged] = GroupCommit(self._refund_all, limit=_GROUP_LIMIT)

    async def charge(self, request: ChargeRequest) -> Charged | Authorized | Declined:
        return _raise_or_return(await self._charges.submit(request))

    async def look_up(self, request: ChargeRequest) -> Charged | Authorized | Declined | None:
        try:
            record = await self._records.find_one({"_id": request.key})
        except PyMongoError as error:
            raise _no_answer(error) from error
        return _raise_or_return(_result(request, record)) if record else None

    async def capture(self, request: ChargeRequest) -> Charged | CaptureRefused:
        result = await self._captures.submit(request)
        if isinstance(result, Exception):
            raise result
        return result

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        return await self._refunds.submit(request.key)

    async def refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        try:
            return await self._refund_part(request, refund_id, amount)
        except PyMongoError as error:
            raise _no_answer(error) from error

    async def _refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        if request.token == TOKEN_REFUND_REFUSED:
            first = {"_id": request.key, "refusedPart": {"$exists": False}}
            await self._records.update_one(first, {"$set": {"refusedPart": refund_id}})
        # One update decides: whether the part is new, allowed and within what is left of the charge.
        enough = {"$lte": [{"$add": [{"$ifNull": ["$partsAmount", 0]}, amount]}, "$amount"]}
        new = {
            "_id": request.key,
            "outcome": "CHARGED",
            "refundedAt": {"$exists": False},
            "parts.refundId": {"$ne": refund_id},
            "refusedPart": {"$ne": refund_id},
            "$expr": enough,
        }
        part = {"refundId": refund_id, "amount": amount, "at": self._clock()}
        made = await self._records.update_one(new, {"$push": {"parts": part}, "$inc": {"partsAmount": amount}})
        if made.matched_count and request.token == TOKEN_TIMEOUT:
            raise GatewayTimeoutError("the gateway did not answer")
        record = await self._records.find_one({"_id": request.key}) or {}
        if refund_id in [known["refundId"] for known in record.get("parts", ())]:
            return Refunded(record["chargeId"])
        if record.get("refusedPart") == refund_id:
            return RefundRefused(PART_REFUSED)
        return RefundRefused("The charge does not hold that much")

    async def drain(self) -> None:
        await self._charges.drain()
        await self._captures.drain()
        await self._refunds.drain()

    async def _charge_all(self, requests: Sequence[ChargeRequest]) -> list[ChargeResult]:
        now = self._clock()
        new = {request.key: self._decide(request, now) for request in requests}
        try:
            # The insert decides a key: of concurrent charges under it, one writes the outcome and the others read it.
            repeated = await self._insert(list(new.values()))
            earlier = await self._count_repeats(repeated) if repeated else {}
        except PyMongoError as error:
            raise _no_answer(error) from error
        return [_first_or_repeated(request, new[request.key], earlier.get(request.key)) for request in requests]

    async def _insert(self, records: Sequence[Document]) -> set[Any]:
        """Insert the records and return the keys that had one already."""
        try:
            await self._records.insert_many(records, ordered=False)
        except BulkWriteError as error:
            return database.duplicates(error)
        return set()

    async def _count_repeats(self, keys: set[Any]) -> dict[str, Document]:
        among = {"_id": {"$in": list(keys)}}
        await self._records.update_many(among, {"$inc": {"attempts": 1}})
        return {record["_id"]: record async for record in self._records.find(among)}

    async def _capture_all(self, requests: Sequence[ChargeRequest]) -> list[CaptureResult]:
        by_key = {request.key: request for request in requests}
        try:
            among = {"_id": {"$in": list(by_key)}}
            before = {record["_id"]: record async for record in self._records.find(among)}
            await self._records.bulk_write([_capture(request) for request in by_key.values()], ordered=False)
            after = {record["_id"]: record async for record in self._records.find(among)}
        except PyMongoError as error:
            raise _no_answer(error) from error
        return [_captured(request, before.get(request.key, {}), after.get(request.key, {})) for request in requests]

    async def _refund_all(self, keys: Sequence[str]) -> list[Refunded | NothingCharged]:
        writes = [UpdateOne({"_id": key}, _refund_or_close(self._clock()), upsert=True) for key in dict.fromkeys(keys)]
        try:
            await self._records.bulk_write(writes, ordered=False)
            found = {record["_id"]: record async for record in self._records.find({"_id": {"$in": list(keys)}})}
        except PyMongoError as error:
            raise _no_answer(error) from error
        return [_refunded(found[key]) for key in keys]

    def _decide(self, request: ChargeRequest, now: datetime) -> Document:
        record: Document = {
            "_id": request.key,
            "amount": request.amount,
            "currency": request.currency,
            "token": request.token,
            "attempts": 1,
            "createdAt": now,
        }
        if is_declined(request.token, request.key, self._failure_rate):
            return record | {"outcome": "DECLINED", "reason": DECLINED}
        return record | {"outcome": "CHARGED" if request.capture else "AUTHORIZED", "chargeId": f"ch_{uuid4().hex}"}


def _first_or_repeated(request: ChargeRequest, new: Document, earlier: Document | None) -> ChargeResult:
    if earlier is not None:
        return _result(request, earlier)
    if request.token == TOKEN_TIMEOUT:
        return GatewayTimeoutError("the gateway did not answer")
    return _result(request, new)


def _result(request: ChargeRequest, record: Document) -> Charged | Authorized | Declined | GatewayKeyReusedError:
    if record["outcome"] == "VOIDED" or record.get("refundedAt"):
        return Declined(CLOSED)
    if (record["amount"], record["currency"]) != (request.amount, request.currency):
        return GatewayKeyReusedError(f"{request.key} was used for {record['amount']} {record['currency']}")
    if record["outcome"] == "AUTHORIZED":
        return Authorized(record["chargeId"])
    return Charged(record["chargeId"]) if record["outcome"] == "CHARGED" else Declined(record["reason"])


def _capture(request: ChargeRequest) -> UpdateOne:
    """Build the update that captures an authorisation, or lets it fail as its token says, and changes nothing else."""
    authorized: Document = {"_id": request.key, "outcome": "AUTHORIZED"}
    if request.token == TOKEN_EXPIRES:
        return UpdateOne(authorized, {"$set": {"outcome": "VOIDED", "reason": EXPIRED}})
    if request.token == TOKEN_CAPTURE_REFUSED:
        refused = {"$cond": ["$captureRefused", "CHARGED", "AUTHORIZED"]}
        return UpdateOne(authorized, [{"$set": {"outcome": refused, "captureRefused": True}}])
    return UpdateOne(authorized, {"$set": {"outcome": "CHARGED"}})


def _captured(request: ChargeRequest, before: Document, after: Document) -> CaptureResult:
    if after.get("outcome") == "AUTHORIZED":
        return CaptureRefused(CAPTURE_REFUSED)
    if after.get("outcome") != "CHARGED" or after.get("refundedAt"):
        return CaptureRefused(after.get("reason") or CLOSED)
    if request.token == TOKEN_TIMEOUT and before.get("outcome") == "AUTHORIZED":
        return GatewayTimeoutError("the gateway did not answer")
    return Charged(after["chargeId"])


def _refund_or_close(now: datetime) -> list[Document]:
    """Build an update that refunds a charge, voids an authorisation, or closes an unknown key."""
    authorized = {"$eq": ["$outcome", "AUTHORIZED"]}
    unrefunded = {"$and": [{"$eq": ["$outcome", "CHARGED"]}, {"$not": ["$refundedAt"]}]}
    return [
        {
            "$set": {
                "refundedAt": {"$cond": [unrefunded, now, {"$ifNull": ["$refundedAt", "$$REMOVE"]}]},
                "outcome": {"$cond": [authorized, "VOIDED", {"$ifNull": ["$outcome", "VOIDED"]}]},
                "createdAt": {"$ifNull": ["$createdAt", now]},
            }
        }
    ]


def _refunded(record: Document) -> Refunded | NothingCharged:
    if record["outcome"] == "CHARGED":
        return Refunded(record["chargeId"])
    return NothingCharged(record.get("reason"))


def _raise_or_return(result: ChargeResult) -> Charged | Authorized | Declined:
    if isinstance(result, Exception):
        raise result
    return result


def _no_answer(error: PyMongoError) -> Exception:
    """Translate a database error to what the caller of an external gateway would see: no answer."""
    return GatewayTimeoutError(str(error)) if database.is_transient(error) else error
