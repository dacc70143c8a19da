"""Runs each operation once per Idempotency-Key: stores the first response, and returns it for every repeat.

    idempotency   {_id: <key>, or <owner>\\0<key>, fingerprint, status, body, at}

Keys belong to the owner that sent them, so nobody gets the response to another's request. Records without an owner are
from before that, or from a system without authentication: a repeated request still gets their response.

The response of an operation is stored in the operation's own transaction, so neither exists without the other. That of
a refusal, which changes nothing else, is stored in the transaction that read the books. Of two processes that store a
response under one key, the second fails, and finds the first one's when it tries again. Responses that do not depend on
the books (an invalid body, 503) are not stored.
"""

import hashlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from pymongo import ASCENDING, IndexModel

from payment_service.funds.failures import failures_logged
from payment_service.ledger.refusals import InsufficientBalanceError, LedgerRefusalError
from payment_service.ledger.transactions import Transactions, Work
from payment_service.ledger.unit_of_work import Reference, UnitOfWork
from shared import problems
from shared.clock import Clock
from shared.database import Document
from shared.errors import RefusalError
from shared.http import problem_content
from shared.problems import ProblemType
from shared.repeats import note_repeat
from shared.schema import CollectionSchema

COLLECTION = "idempotency"
SCHEMA = CollectionSchema((IndexModel([("at", ASCENDING)], name="by_time"),))


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
    """A request as it is compared with an earlier one under the same key: by what its body says as JSON."""

    key: str | None
    method: str
    path: str
    body: BaseModel | None = None
    owner: str | None = None

    @property
    def record_id(self) -> str | None:
        """The id of the record of its response; a header cannot contain the separator."""
        return self.key if self.key is None or self.owner is None else f"{self.owner}\0{self.key}"

    def fingerprint(self) -> str:
        """Return a hash of method, path and body."""
        body = None if self.body is None else self.body.model_dump(mode="json", by_alias=True)
        content = [self.method, self.path, body]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class IdempotencyKeyReusedError(RefusalError):
    """The Idempotency-Key was used before for another request."""


class IdempotentRunner:
    """Runs operations in transactions, each once per key."""

    def __init__(self, transactions: Transactions, clock: Clock) -> None:
        self._transactions = transactions
        self._clock = clock

    async def run(
        self,
        request: IdempotentRequest,
        operation: str,
        work: Work[StoredResponse],
        *,
        touches: Collection[Reference] = (),
    ) -> StoredResponse:
        """Run `work` in a transaction and return its response, or the stored response of the request's key.

        Raises IdempotencyKeyReusedError if the key belongs to another request, the errors of Transactions.run, and
        without a key also LedgerRefusalError.
        """
        if request.key is None:
            with _failures_logged(request, operation, touches):
                return await self._transactions.run(operation, work, touches)

        async def first_or_repeated(unit: UnitOfWork) -> StoredResponse:
            stored = await _find(request, unit)
            if stored is not None:
                return stored
            response = await work(unit)
            unit.insert(COLLECTION, self._record(request, response))
            return response

        def store(unit: UnitOfWork, refusal: LedgerRefusalError) -> None:
            unit.insert(COLLECTION, self._record(request, refusal_response(refusal)))

        try:
            with _failures_logged(request, operation, touches):
                response = await self._transactions.run(
                    operation, first_or_repeated, (*touches, *_records_of(request)), on_refusal=store
                )
        except LedgerRefusalError as refusal:
            response = refusal_response(refusal)
        if response.replayed:
            note_repeat(operation, path=request.path)
        return response

    def _record(self, request: IdempotentRequest, response: StoredResponse) -> Document:
        return {
            "_id": request.record_id,
            "fingerprint": request.fingerprint(),
            "status": response.status,
            "body": response.body,
            "at": self._clock(),
        }


async def _find(request: IdempotentRequest, unit: UnitOfWork) -> StoredResponse | None:
    own, former = [await unit.get(*reference) for reference in _records_of(request)]
    fingerprint = request.fingerprint()
    record = own
    if record is None and former is not None and former["fingerprint"] == fingerprint:
        record = former
    if record is None:
        return None
    if record["fingerprint"] != fingerprint:
        raise IdempotencyKeyReusedError
    return StoredResponse(record["status"], record["body"], replayed=True)


def _records_of(request: IdempotentRequest) -> tuple[Reference, Reference]:
    """Return the places of the request's record, and of one without an owner."""
    return Reference(COLLECTION, request.record_id or ""), Reference(COLLECTION, request.key or "")


def _failures_logged(
    request: IdempotentRequest, operation: str, touches: Collection[Reference]
) -> AbstractContextManager[None]:
    return failures_logged(operation, touches, path=request.path, body=request.body)


def refusal_response(refusal: LedgerRefusalError) -> StoredResponse:
    """Convert a refusal to a problem document (RFC 9457)."""
    errors = [(refusal.field, refusal.detail)] if refusal.field is not None else []
    body = problem_content(refusal.status, refusal.detail, kind=_kind(refusal), errors=errors)
    return StoredResponse(refusal.status.value, body)


def _kind(refusal: LedgerRefusalError) -> ProblemType | None:
    if isinstance(refusal, InsufficientBalanceError):
        return problems.INSUFFICIENT_BALANCE
    return problems.BOOKS_REFUSE if refusal.status is HTTPStatus.BAD_REQUEST else None
