"""The first answer under an Idempotency-Key: written with the operation, and given again to whoever repeats the key.

    idempotency   {_id: <key>, fingerprint, status, body, at}

An operation's answer is written in its own transaction: there is never one without the other. A refusal changes
nothing, so its answer is written alone, after the transaction is aborted; if the same key has gone through elsewhere
in between, that answer stands. Answers that do not depend on the books (a body that is not valid, 503) are not kept.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from payment_service.ledger.refusals import RefusedError
from payment_service.ledger.transactions import ContentionError, Session, Transactions
from shared.clock import Clock
from shared.database import Database, Document
from shared.schema import CollectionSchema

COLLECTION = "idempotency"
SCHEMA = CollectionSchema((IndexModel([("at", ASCENDING)], name="by_time"),))

_ATTEMPTS = 5
"""How often an operation is begun again because another process has inserted the same document meanwhile."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What HTTP answers; the body is JSON."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request as it is compared with an earlier one under the same key."""

    key: str | None
    method: str
    path: str
    body: Any = None

    def fingerprint(self) -> str:
        """A text that differs for every other method, path or body."""
        content = [self.method, self.path, self.body]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class KeyReusedError(Exception):
    """The Idempotency-Key was used for another request before."""


class IdempotentRunner:
    """Runs each operation once per key."""

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
        """Run `work` in a transaction and return its answer, or the first answer under the request's key.

        Raises RefusedError as `work` does when there is no key, KeyReusedError when the key belongs to another
        request, and what Transactions.run raises.
        """
        if request.key is None:
            return await self._run_with_retries(operation, work, keys)

        async def first_or_repeated(session: Session) -> StoredResponse:
            earlier = await self._find(request, session)
            if earlier is not None:
                return earlier
            answer = await work(session)
            await self._records.insert_one(self._record(request, answer), session=session)
            return answer

        key_lock = f"{COLLECTION}:{request.key}"
        try:
            return await self._run_with_retries(operation, first_or_repeated, {*keys, key_lock})
        except RefusedError as refusal:
            return await self._keep(request, problem_response(refusal))

    async def _run_with_retries(
        self, operation: str, work: Callable[[Session], Awaitable[StoredResponse]], keys: Collection[str]
    ) -> StoredResponse:
        for _ in range(_ATTEMPTS):
            try:
                return await self._transactions.run(operation, work, keys)
            except DuplicateKeyError:
                # Inserted by another process after this transaction's snapshot: the next snapshot has it.
                continue
        raise ContentionError("other requests kept doing the same; nothing was changed")

    async def _find(self, request: IdempotentRequest, session: Session | None = None) -> StoredResponse | None:
        record = await self._records.find_one({"_id": request.key}, session=session)
        if record is None:
            return None
        if record["fingerprint"] != request.fingerprint():
            raise KeyReusedError
        return StoredResponse(record["status"], record["body"])

    async def _keep(self, request: IdempotentRequest, refused: StoredResponse) -> StoredResponse:
        try:
            await self._records.insert_one(self._record(request, refused))
        except DuplicateKeyError:
            return await self._find(request) or refused
        return refused

    def _record(self, request: IdempotentRequest, answer: StoredResponse) -> Document:
        return {
            "_id": request.key,
            "fingerprint": request.fingerprint(),
            "status": answer.status,
            "body": answer.body,
            "at": self._clock(),
        }


def problem_response(refusal: RefusedError) -> StoredResponse:
    """The problem document (RFC 9457) that says why."""
    status: HTTPStatus = refusal.status
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": refusal.detail,
    }
    if refusal.field is not None:
        body["errors"] = [{"field": refusal.field, "message": refusal.detail}]
    return StoredResponse(status.value, body)
