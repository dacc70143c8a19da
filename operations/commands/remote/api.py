"""Requests of commands to the operations API of a console, with its refusals and failures in words."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote
from uuid import uuid4

import httpx
import typer

from operations.errors import CommandError, UnreachableError
from operations.reading.requests import NOT_SENT
from operations.settings import RemoteStack
from operations.stack.layout import API_KEY_VARIABLE, REMOTE_URL_VARIABLE
from shared.outage_words import in_words
from shared.paging import MAX_LIMIT
from shared.release import VERSION
from shared.tls import client_context

PREFIX = "/api/v1"

TIMEOUT_SECONDS = 60.0
"""Longer than the console waits for any server."""

ATTEMPTS = 3
"""How often a request is sent that may be repeated."""

PAUSE_SECONDS = 0.5

LONGEST_WAIT_SECONDS = 20
"""The longest pause that a console asks for and a command makes."""

POLL_SECONDS = 0.25

NO_SUCH_PATH = "This path does not exist"
"""What every service answers for a path that it does not have."""

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


class OperationsApi:
    """The operations API of one console. Raises RefusedError and UnreachableError."""

    def __init__(self, stack: RemoteStack, client: httpx.AsyncClient) -> None:
        self.stack = stack
        self._client = client

    async def get(self, *steps: str, **parameters: Any) -> Any:
        """Return what an address answers; parameters without a value are left out."""
        return await self._send("GET", steps, parameters=parameters, repeat=True)

    async def post(
        self, *steps: str, body: Mapping[str, Any] | None = None, key: str | None = None, repeat: bool = False
    ) -> Any:
        """Send a body, and return the answer; `repeat` and a key say that nothing is done twice."""
        headers = {"Idempotency-Key": key} if key else {}
        return await self._send("POST", steps, body=body or {}, headers=headers, repeat=repeat or bool(key))

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

    async def _send(
        self,
        method: str,
        steps: tuple[str, ...],
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
    ) -> Any:
        address = f"{self.stack.url}{PREFIX}/{'/'.join(quote(step, safe='') for step in steps)}"
        given = {name: value for name, value in (parameters or {}).items() if value not in (None, "", (), [])}
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            try:
                answer = await self._client.request(method, address, params=given, json=body, headers=headers)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if last or not repeat or isinstance(error, NOT_SENT):
                    raise self._unreachable(error, acted=not repeat) from error
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if not last and (wait := _seconds_to_wait(answer, repeat)) is not None:
                await asyncio.sleep(wait)
                continue
            return self._content(answer)
        raise AssertionError("the last attempt returns or raises")

    def _unreachable(self, error: Exception, *, acted: bool) -> UnreachableError:
        """Return the error of a request without an answer; `acted` if it may have been done nevertheless."""
        what = f"the console at {self.stack.describe()} cannot be reached: {in_words(error)}"
        if acted and not isinstance(error, NOT_SENT):
            what += "; the request may have been carried out: look before you repeat it"
        return UnreachableError(what)

    def _content(self, answer: httpx.Response) -> Any:
        """Return the content of an answer. Raises RefusedError or UnreachableError for any other than a success."""
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        if answer.is_success and answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            content = answer.json() if kind in (_JSON, _PROBLEM) else None
        except ValueError:
            content = None
        if content is None or not answer.is_success:
            self._refuse(answer, content if kind == _PROBLEM and isinstance(content, dict) else None)
        return content

    def _refuse(self, answer: httpx.Response, problem: Mapping[str, Any] | None) -> NoReturn:
        where, status = f"the console at {self.stack.describe()}", answer.status_code
        if problem is None:
            raise self._foreign(answer)
        detail = str(problem.get("detail") or problem.get("title") or "")
        if status == httpx.codes.UNAUTHORIZED:
            raise RefusedError(status, self._unknown_key(detail))
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
            raise UnreachableError(f"{where} cannot do it now: {detail}")
        raise RefusedError(status, detail)

    def _unknown_key(self, detail: str) -> str:
        make = "`ordersaga keys create --role operator --owner … --name …` on a machine of the stack makes one"
        if self.stack.api_key is None:
            return f"{REMOTE_URL_VARIABLE} needs a key, in {API_KEY_VARIABLE} or in a file: {make}"
        return (
            f"the console at {self.stack.describe()} does not accept the key in {API_KEY_VARIABLE} ({detail}): {make}"
        )

    def _foreign(self, answer: httpx.Response) -> CommandError:
        """Return the error of an answer that no operations API gives."""
        status, where = answer.status_code, self.stack.describe()
        if answer.has_redirect_location:
            return RefusedError(
                status, f"{where} leads to {answer.headers['Location']}: {REMOTE_URL_VARIABLE} must be the last address"
            )
        if answer.is_server_error:
            return UnreachableError(f"what answers at {where} cannot reach the console: status {status}")
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


def new_key() -> str:
    """Return an Idempotency-Key for one act of a command."""
    return uuid4().hex


def in_rfc3339(moment: Any) -> str | None:
    """Return a time as a parameter, None without one."""
    return None if moment is None else moment.isoformat()


def _seconds_to_wait(answer: httpx.Response, repeat: bool) -> float | None:
    """Return how long to wait before the request is sent again, None if it is not."""
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        asked = answer.headers.get("Retry-After", "")
        seconds = float(asked) if asked.isdigit() else PAUSE_SECONDS
        return seconds if seconds <= LONGEST_WAIT_SECONDS else None
    gone = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
    return PAUSE_SECONDS if repeat and answer.status_code in gone else None
