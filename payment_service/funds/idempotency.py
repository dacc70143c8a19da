"""Runs each operation once per Idempotency-Key: stores the first response, and returns it for every repeat.

    idempotency   {_id: <key>, or <owner>\\0<key>, fingerprint, status, body, at}

Keys belong to the owner that sent them, so nobody gets the response to another's request. Records without an owner are
from before that, or from a system without authentication: a repeated request still gets their response.

The response of an operation is stored in the operation's own transaction, so neither exists without the other. A
refusal changes nothing, so its response is stored on its own, after the transaction is aborted; if the same request
has succeeded in another process in the meantime, its response wins. Responses that do not depend on the books (an
invalid body, 503) are not stored.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from payment_service.funds.failures import failures_logged
from payment_service.ledger.refusals import InsufficientBalanceError, LedgerRefusalError
from payment_service.ledger.transactions import ContentionError, Session, Transactions
from shared import problems
from shared.clock import Clock
from shared.database import Database, Document
from shared.errors import RefusalError
from shared.http import problem_content
from shared.problems import ProblemType
from shared.repeats import note_repeat
from shared.schema import CollectionSchema

COLLECTION = "idempotency"
SCHEMA = CollectionSchema((IndexModel([("at", ASCENDING)], name="by_time"),))

_ATTEMPTS = 5
"""The limit of attempts while other processes insert the same document concurrently."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """An HTTP response in the form in which it is stored; the body is JSON.

    `replayed` says that it is the response to an earlier request.
    """

    status: int
    body: Any
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request in the form in which it is compared with an earlier one under the same key."""

    key: str | None
    method: str
    path: str
    body: Any = None
    owner: str | None = None

    @property
    def record_id(self) -> str | None:
        """The id of the record of its response; a header cannot contain the separator."""
        return self.key if self.key is None or self.owner is None else f"{self.owner}\0{self.key}"

    def fingerprint(self) -> str:
        """Return a hash of method, path and body."""
        content = [self.method, self.path, self.body]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class IdempotencyKeyReusedError(RefusalError):
    """The Idempotency-Key was used before for another request."""


class IdempotentRunner:
    """Runs operations in transactions, each once per key."""

    def __init__(self, database: Database, transactions: Transactions, clock: Clock) -> None:
        self._records = database[COLLECTION]
        self._transactions = transactions
        self._clock = clock

    async def run(
        self,
        request: IdempotentRequest,
        operation: str,
        work: Callable[[Session], Awaitable[StoredResponse]],
        *,
        keys: Collection[str] = (),
    ) -> StoredResponse:
        """Run `work` in a transaction and return its response, or the stored response of the request's key.

        Raises IdempotencyKeyReusedError if the key belongs to another request, the errors of Transactions.run, and
        without a key also LedgerRefusalError.
        """
        if request.key is None:
            return await self._run_with_retries(request, operation, work, keys)

        async def first_or_repeated(session: Session) -> StoredResponse:
            stored = await self._find(request, session)
            if stored is not None:
                return stored
            response = await work(session)
            # In the same transaction: of two concurrent requests under one key, the second fails here and is aborted.
            await self._records.insert_one(self._record(request, response), session=session)
            return response

        key_lock = f"{COLLECTION}:{request.record_id}"
        try:
            response = await self._run_with_retries(request, operation, first_or_repeated, keys, key_lock)
        except LedgerRefusalError as refusal:
            response = await self._store_refusal(request, refusal_response(refusal))
        if response.replayed:
            note_repeat(operation, path=request.path)
        return response

    async def _run_with_retries(
        self,
        request: IdempotentRequest,
        operation: str,
        work: Callable[[Session], Awaitable[StoredResponse]],
        keys: Collection[str],
        *more_keys: str,
    ) -> StoredResponse:
        with failures_logged(operation, keys, path=request.path, body=request.body):
            for _ in range(_ATTEMPTS):
                try:
                    return await self._transactions.run(operation, work, {*keys, *more_keys})
                except DuplicateKeyError:
                    # Another process inserted the document after this transaction's snapshot; the next one includes it.
                    continue
            raise ContentionError("other requests kept inserting the same document; nothing was changed")

    async def _find(self, request: IdempotentRequest, session: Session | None = None) -> StoredResponse | None:
        fingerprint = request.fingerprint()
        ids = {"$in": [request.record_id, request.key]}
        found = {record["_id"]: record async for record in self._records.find({"_id": ids}, session=session)}
        record = found.get(request.record_id)
        if record is None:
            former = found.get(request.key)
            record = former if former is not None and former["fingerprint"] == fingerprint else None
        if record is None:
            return None
        if record["fingerprint"] != fingerprint:
            raise IdempotencyKeyReusedError
        return StoredResponse(record["status"], record["body"], replayed=True)

    async def _store_refusal(self, request: IdempotentRequest, refusal: StoredResponse) -> StoredResponse:
        try:
            await self._records.insert_one(self._record(request, refusal))
        except DuplicateKeyError:
            return await self._find(request) or refusal
        return refusal

    def _record(self, request: IdempotentRequest, response: StoredResponse) -> Document:
        return {
            "_id": request.record_id,
            "fingerprint": request.fingerprint(),
            "status": response.status,
            "body": response.body,
            "at": self._clock(),
        }


def refusal_response(refusal: LedgerRefusalError) -> StoredResponse:
    """Convert a refusal to a problem document (RFC 9457)."""
    errors = [(refusal.field, refusal.detail)] if refusal.field is not None else []
    body = problem_content(refusal.status, refusal.detail, kind=_kind(refusal), errors=errors)
    return StoredResponse(refusal.status.value, body)


def _kind(refusal: LedgerRefusalError) -> ProblemType | None:
    if isinstance(refusal, InsufficientBalanceError):
        return problems.INSUFFICIENT_BALANCE
    return problems.BOOKS_REFUSE if refusal.status is HTTPStatus.BAD_REQUEST else None
