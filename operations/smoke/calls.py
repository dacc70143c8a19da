"""Requests of the smoke test to the services of a stack."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx

from operations.errors import CommandError
from operations.reading.requests import NOT_SENT
from shared.tls import plain_reason

POLL_SECONDS = 0.2

KEY_REUSED = httpx.codes.UNPROCESSABLE_ENTITY
"""The status with which services refuse a key that is that of another request."""


class StepFailedError(CommandError):
    """A service did not answer as it should, or not in time; the message names the request.

    With `without_effect` it is certain that the request changed nothing: it was not sent, or was refused.
    """

    def __init__(self, message: str, *, without_effect: bool = False) -> None:
        super().__init__(message)
        self.without_effect = without_effect


class Calls:
    """Requests to the services at these URLs, each answered within the client's time-out."""

    def __init__(self, client: httpx.AsyncClient, urls: dict[str, str]) -> None:
        self._client = client
        self._urls = urls

    async def send(self, method: str, service: str, path: str, body: object = None, *, key: str | None = None) -> Any:
        """Send a request, under an idempotency key if one is given, and return the body of its answer.

        Raises StepFailedError if there is no answer, if its status is 400 or above, or if its body is not JSON.
        """
        return _content(f"{method} {path} of {service}", await self._answer(method, service, path, body, key))

    async def find(self, service: str, path: str) -> Any:
        """Return the body of what is at this path, None if there is nothing; otherwise like `send`."""
        answer = await self._answer("GET", service, path, expected=httpx.codes.NOT_FOUND)
        return None if answer.status_code == httpx.codes.NOT_FOUND else _content(f"GET {path} of {service}", answer)

    async def is_accepted(self, service: str, path: str, body: object, *, key: str) -> bool:
        """Send a request under a key, like `send`; return False if the key is that of another request."""
        answer = await self._answer("POST", service, path, body, key, expected=KEY_REUSED)
        return answer.status_code != KEY_REUSED

    async def _answer(
        self,
        method: str,
        service: str,
        path: str,
        body: object = None,
        key: str | None = None,
        *,
        expected: int | None = None,
    ) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        name = f"{method} {path} of {service}"
        try:
            answer = await self._client.request(method, self._urls[service] + path, json=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = plain_reason(str(error)) or type(error).__name__
            raise StepFailedError(f"{name}: {reason}", without_effect=isinstance(error, NOT_SENT)) from error
        if answer.is_error and answer.status_code != expected:
            reason = f"{answer.status_code} {_problem(answer)}"
            raise StepFailedError(f"{name}: {reason}", without_effect=answer.is_client_error)
        return answer

    async def until(self, service: str, path: str, holds: Callable[[Any], bool], *, within: float) -> Any:
        """Read until the condition holds, and return what was read. Raises StepFailedError after `within` seconds."""
        deadline = time.monotonic() + within
        while not holds(found := await self.send("GET", service, path)):
            if time.monotonic() > deadline:
                state = {name: found[name] for name in ("status", "settled", "failureReason") if name in found}
                raise StepFailedError(f"GET {path} of {service}: after {within:g} s it is still {state}")
            await asyncio.sleep(POLL_SECONDS)
        return found


def _content(name: str, answer: httpx.Response) -> Any:
    try:
        return answer.json() if answer.content else None
    except ValueError as error:
        raise StepFailedError(f"{name}: {answer.status_code}, but not with JSON: {answer.text[:200]}") from error


def _problem(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return answer.text[:200]
    return str(problem.get("detail", problem) if isinstance(problem, dict) else problem)[:300]
