"""Requests of commands to the operations API of a console, with its refusals and failures in words."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote
from uuid import uuid4

import httpx
import typer

from operations.errors import CommandError, UnreachableError
from operations.reading.requests import NOT_SENT
from operations.settings import RemoteStack
from operations.stack.layout import API_KEY_VARIABLE, REMOTE_URL_VARIABLE
from shared.cursors import MAX_LIMIT, time_key, write_cursor
from shared.outage_words import in_words
from shared.release import VERSION
from shared.tls import client_context

PREFIX = "/api/v1"

TIMEOUT_SECONDS = 60.0
"""Longer than the console waits for any server."""

ATTEMPTS = 3
"""How often a request is sent that may be repeated."""

PAUSE_SECONDS = 0.5

LONGEST_WAIT_SECONDS = 20
"""The longest pause that a console asks for and a command makes before it acts."""

LONGEST_WAIT_TO_READ_SECONDS = 120
"""The same for requests that read: an export of many letters reaches the rate limit of a key."""

WAITS_TO_READ = 10
"""How often a request that reads is made to wait."""

RESTART_SECONDS = 15.0
"""For how long requests that read are repeated once the console has answered: it may be restarting."""

POLL_SECONDS = 0.25

NOT_DONE = "Not done: "
"""How the console says that a service has certainly not done what it was asked for."""

NO_SUCH_PATH = "This path does not exist"
"""What every service answers for a path that it does not have."""

PERHAPS_DONE = "the request may have been carried out: look before you repeat it"

_PROBLEM = "application/problem+json"
_JSON = "application/json"
_FIELDS = {"cursor": "--cursor", "limit": "--limit", "reason": "--why"}
"""The options that have other names in the API."""


class RefusedError(CommandError):
    """The console refuses a request; `status` is that of its answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class InvalidRequestError(RefusedError):
    """The console does not take a request; `errors` has what is wrong with it, by field."""

    def __init__(self, text: str, errors: list[tuple[str, str]]) -> None:
        super().__init__(422, text)
        self.errors = errors


class ById(NamedTuple):
    """A list by ids, the newest first: the parameter, and the fields of items with the id and the time."""

    parameter: str
    id: str
    at: str

    def key(self, item: Mapping[str, Any]) -> tuple[datetime, str]:
        """Return what the list is sorted by."""
        return datetime.fromisoformat(item[self.at]), item[self.id]


class OperationsApi:
    """The operations API of one console. Raises RefusedError and UnreachableError."""

    def __init__(self, stack: RemoteStack, client: httpx.AsyncClient) -> None:
        self.stack = stack
        self._client = client
        self._has_answered = False

    async def get(self, *steps: str, **parameters: Any) -> Any:
        """Return what an address answers; parameters without a value are left out."""
        return await self._send("GET", steps, parameters=parameters, repeat=True, acts=False)

    async def post(
        self, *steps: str, body: Mapping[str, Any] | None = None, key: str | None = None, only_asks: bool = False
    ) -> Any:
        """Send a body, and return the answer; with a key, nothing is done twice, with `only_asks` nothing at all."""
        headers = {"Idempotency-Key": key} if key else {}
        repeat = only_asks or bool(key)
        return await self._send("POST", steps, body=body or {}, headers=headers, repeat=repeat, acts=not only_asks)

    async def patch(self, *steps: str, body: Mapping[str, Any]) -> Any:
        """Send changes, and return the answer."""
        return await self._send("PATCH", steps, body=body, repeat=True)

    async def delete(self, *steps: str, **parameters: Any) -> None:
        """Delete something."""
        await self._send("DELETE", steps, parameters=parameters)

    async def pages(self, *steps: str, limit: int, cursor: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Return up to `limit` items of a list as one page, and what else its last page says."""
        items: list[Any] = []
        while True:
            size = min(limit - len(items), MAX_LIMIT)
            page: dict[str, Any] = await self.get(*steps, limit=size, cursor=cursor, **parameters)
            items += page["items"]
            cursor = page["nextCursor"]
            if cursor is None or len(items) >= limit:
                return page | {"items": items}

    async def pages_by_id(
        self, step: str, ids: Sequence[str], by: ById, *, limit: int, cursor: str | None, **parameters: Any
    ) -> dict[str, Any]:
        """Return what `pages` does, the newest first; of more ids than a request takes, put together from several."""
        known = list(dict.fromkeys(ids))
        chunks = [known[start : start + MAX_LIMIT] for start in range(0, len(known), MAX_LIMIT)] or [[]]
        asked = [{by.parameter: chunk} | parameters for chunk in chunks]
        pages = [await self.pages(step, limit=limit, cursor=cursor, **each) for each in asked]
        if len(pages) == 1:
            return pages[0]
        items = sorted((item for page in pages for item in page["items"]), key=by.key, reverse=True)
        more = len(items) > limit or any(page["nextCursor"] for page in pages)
        shown = items[:limit]
        return {
            "items": shown,
            "nextCursor": write_cursor(time_key(*by.key(shown[-1]))) if more else None,
            "total": sum(page["total"] for page in pages),
            "totalIsExact": all(page["totalIsExact"] for page in pages),
        }

    async def _send(
        self,
        method: str,
        steps: tuple[str, ...],
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
        acts: bool = True,
    ) -> Any:
        """Send a request, again if `repeat` says that it may be; `acts` says that it may have changed something."""
        address = f"{self.stack.url}{PREFIX}/{'/'.join(quote(step, safe='') for step in steps)}"
        given = {name: value for name, value in (parameters or {}).items() if value not in (None, "", (), [])}
        patience = _Patience(repeat=repeat, reads=not acts, has_answered=self._has_answered)
        while True:
            try:
                answer = await self._client.request(method, address, params=given, json=body, headers=headers)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if not patience.after_error(error):
                    raise self._unreachable(error, acted=acts) from error
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if (wait := patience.after_answer(answer)) is None:
                return self._content(answer, acts)
            await asyncio.sleep(wait)

    def _unreachable(self, error: Exception, *, acted: bool) -> UnreachableError:
        """Return the error of a request without an answer; `acted` if it may have been done nevertheless."""
        what = f"the console at {self.stack.describe()} cannot be reached: {in_words(error)}"
        return UnreachableError(f"{what}; {PERHAPS_DONE}" if acted and not isinstance(error, NOT_SENT) else what)

    def _content(self, answer: httpx.Response, acts: bool) -> Any:
        """Return the content of an answer. Raises RefusedError or UnreachableError for any other than a success."""
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        self._has_answered = self._has_answered or answer.is_success
        if answer.is_success and answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            content = answer.json() if kind in (_JSON, _PROBLEM) else None
        except ValueError:
            content = None
        if content is None or not answer.is_success:
            self._refuse(answer, content if kind == _PROBLEM and isinstance(content, dict) else None, acts)
        return content

    def _refuse(self, answer: httpx.Response, problem: Mapping[str, Any] | None, acts: bool) -> NoReturn:
        where, status = f"the console at {self.stack.describe()}", answer.status_code
        if problem is None:
            raise self._foreign(answer, acts)
        detail = str(problem.get("detail") or problem.get("title") or "")
        if status == httpx.codes.UNAUTHORIZED:
            raise RefusedError(status, unknown_key(self.stack, detail))
        if status == httpx.codes.UNPROCESSABLE_ENTITY:
            errors = [(str(each["field"]), str(each["message"])) for each in problem.get("errors") or ()]
            text = "; ".join(f"{field}: {message}" for field, message in errors) or detail
            raise InvalidRequestError(f"{where} refuses the request: {text}", errors)
        unknown = detail == NO_SUCH_PATH or detail.startswith(f"The path {PREFIX}/")
        if unknown or status == httpx.codes.METHOD_NOT_ALLOWED:
            raise RefusedError(
                status,
                f"{where} does not know what this command needs ({detail}): it is another service, or of an earlier "
                f"release than this command, which is of {VERSION}",
            )
        if status == httpx.codes.TOO_MANY_REQUESTS:
            wait = answer.headers.get("Retry-After", "a few")
            raise RefusedError(status, f"{where} gets too many requests: try again in {wait} seconds")
        if answer.is_server_error:
            # With Retry-After, the console has refused the request before it did anything.
            refused = status == httpx.codes.SERVICE_UNAVAILABLE and "Retry-After" in answer.headers
            perhaps = acts and not refused and not detail.startswith(NOT_DONE)
            raise UnreachableError(f"{where} cannot do it now: {detail}" + (f"; {PERHAPS_DONE}" if perhaps else ""))
        raise RefusedError(status, detail)

    def _foreign(self, answer: httpx.Response, acts: bool) -> CommandError:
        """Return the error of an answer that no operations API gives."""
        status, where = answer.status_code, self.stack.describe()
        if answer.has_redirect_location:
            return RefusedError(
                status, f"{where} leads to {answer.headers['Location']}: {REMOTE_URL_VARIABLE} must be the last address"
            )
        if answer.is_server_error:
            what = f"what answers at {where} cannot reach the console: status {status}"
            return UnreachableError(f"{what}; {PERHAPS_DONE}" if acts else what)
        return RefusedError(
            status,
            f"what answers at {where} is no operations API (status {status}): {REMOTE_URL_VARIABLE} must be the "
            "address of a console, such as https://console.example.org or http://127.0.0.1:3012",
        )


@contextlib.asynccontextmanager
async def open_api(stack: RemoteStack) -> AsyncIterator[OperationsApi]:
    """Connect to the console of a stack; a request that it does not take ends the command as wrong usage."""
    limits = httpx.Timeout(TIMEOUT_SECONDS, connect=10)
    options: dict[str, Any] = {"headers": stack.headers, "timeout": limits, "verify": client_context()}
    async with httpx.AsyncClient(**options, trust_env=False, follow_redirects=False) as client:
        try:
            yield OperationsApi(stack, client)
        except InvalidRequestError as error:
            option = _FIELDS.get(error.errors[0][0]) if len(error.errors) == 1 else None
            text = error.errors[0][1] if option else str(error)
            raise typer.BadParameter(text, param_hint=option) from None


def unknown_key(stack: RemoteStack, detail: str) -> str:
    """Return what to say of a key that the console does not accept, or of none."""
    make = "`ordersaga keys create --role operator --owner … --name …` on a machine of the stack makes one"
    if stack.api_key is None:
        return f"{REMOTE_URL_VARIABLE} needs a key, in {API_KEY_VARIABLE} or in a file: {make}"
    return f"the console at {stack.describe()} does not accept the key in {API_KEY_VARIABLE} ({detail}): {make}"


def new_key() -> str:
    """Return an Idempotency-Key for one act of a command."""
    return uuid4().hex


class _Patience:
    """Whether one request is sent again: `repeat` says that it may be done twice, `reads` that it changes nothing."""

    def __init__(self, *, repeat: bool, reads: bool, has_answered: bool) -> None:
        self._repeat = repeat
        self._reads = reads
        self._until = time.monotonic() + RESTART_SECONDS if reads and has_answered else None
        self._failures = self._waits = 0

    def after_error(self, error: Exception) -> bool:
        """Return whether the request is sent again after an error: where nothing listens, only if something did."""
        if isinstance(error, NOT_SENT):
            return self._may_restart()
        return self._repeat and self._fails()

    def after_answer(self, answer: httpx.Response) -> float | None:
        """Return how many seconds to wait before the request is sent again, None if it is not."""
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._waits += 1
            asked = answer.headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdigit() else PAUSE_SECONDS
            longest, most = LONGEST_WAIT_SECONDS, ATTEMPTS - 1
            if self._reads:
                longest, most = LONGEST_WAIT_TO_READ_SECONDS, WAITS_TO_READ
            return seconds if seconds <= longest and self._waits <= most else None
        gone = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
        return PAUSE_SECONDS if self._repeat and answer.status_code in gone and self._fails() else None

    def _fails(self) -> bool:
        self._failures += 1
        return self._failures < ATTEMPTS or self._may_restart()

    def _may_restart(self) -> bool:
        return self._until is not None and time.monotonic() < self._until
