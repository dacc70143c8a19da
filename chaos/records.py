"""The record of every request that clients made, and of every answer that they got."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from operations.stack.files import open_private

RequestKind = Literal["order", "hold", "cancel", "deliver", "refund", "posting"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, and the id of what it is about. Without a status, none came, for the reason in `error`."""

    at: float
    status: int | None
    id: str | None = None
    error: str | None = None

    @property
    def is_acceptance(self) -> bool:
        """Whether the client was told that it is accepted."""
        return self.status is not None and self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether the client need not ask again: accepted, or refused for a reason that stays."""
        return self.status is not None and self.status < 500 and self.status != 429


@dataclass(slots=True)
class Request:
    """What a client asked for under a key, however often, and the answers to it.

    `subject` is what it is about: the order of a refund, the retainer of a posting, the customer of an order.
    """

    key: str
    kind: RequestKind
    subject: str
    body: Mapping[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    @property
    def accepted(self) -> Answer | None:
        """The first answer that said so."""
        return next((answer for answer in self.answers if answer.is_acceptance), None)

    @property
    def ids(self) -> set[str]:
        """The ids that the client was told."""
        return {str(answer.id) for answer in self.answers if answer.is_acceptance}

    @property
    def is_doubtful(self) -> bool:
        """Whether it was not accepted, and may have been done: an attempt had no answer, or an error for one."""
        return self.accepted is None and any(not answer.is_final for answer in self.answers)

    @property
    def is_unanswered(self) -> bool:
        """Whether the client has given up."""
        return self.accepted is None and not (self.answers and self.answers[-1].is_final)

    @property
    def refusal(self) -> Answer | None:
        """The last answer if it refused the request for good."""
        last = self.answers[-1] if self.answers else None
        return last if last is not None and last.is_final and not last.is_acceptance else None


class Journal:
    """All requests, in memory and line by line in a file. A context manager that closes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: dict[str, Request] = {}
        self._file: IO[bytes] = open_private(path, "ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self, request: Request) -> None:
        """Note a request before it is sent."""
        self.requests[request.key] = request
        self._write({"key": request.key, "asks": request.kind, "about": request.subject, "body": request.body})

    def note(self, request: Request, answer: Answer) -> None:
        """Note an answer, or that none came."""
        request.answers.append(answer)
        told = {"status": answer.status, "id": answer.id, "error": answer.error}
        self._write({"key": request.key, **{name: value for name, value in told.items() if value is not None}})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"at": round(time.time(), 3), **line}).encode() + b"\n")
        self._file.flush()
