"""What the console asks others for, over HTTP and elsewhere, and how it says that they do not answer."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import pymongo
from pymongo.errors import PyMongoError

from operations.errors import UnreachableError
from operations.reading.reachability import brief
from shared.errors import TransientError

PATIENCE_SECONDS = 3.0
"""How long a part of a page is waited for."""

ACT_SECONDS = 15.0
"""How long an order service may take to carry out what an operator asks for."""

KEEP_SECONDS = 2.0
"""How long an idle connection is kept: a service closes it after 5 s, and a request must not meet that."""

PAGE = 100
"""Most entries that a service lists at once."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)
"""What goes wrong before a service can have seen a request."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for what could not be had, with the reason; where `sent`, it may have been done all the same."""

    why: str
    sent: bool = True


class Answer(NamedTuple):
    """What a service answered; `body` is empty where that was not a JSON object."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked for."""
        return self.status < 400

    @property
    def detail(self) -> str:
        """What it says went wrong."""
        return str(self.body.get("detail") or f"it answers with status {self.status}")


async def attempt(asked: Awaitable[T], what: str, seconds: float = PATIENCE_SECONDS) -> T | Missing:
    """Await what a page shows; where a server does not answer, return that instead of raising."""
    try:
        # The driver's own limit ends its calls cleanly; the other one is for what is no driver's.
        async with asyncio.timeout(seconds + 1):
            with pymongo.timeout(seconds):
                return await asked
    except TimeoutError:
        return Missing(f"{what} did not answer within {seconds:g} s")
    except (PyMongoError, UnreachableError, TransientError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Missing(f"{what}: {brief(error)}", sent=not isinstance(error, _NOT_SENT))


class Services:
    """The services' HTTP interfaces, by the services' names."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.urls = dict(urls)
        self._client: httpx.AsyncClient | None = None

    async def get(self, service: str, path: str, **parameters: str | int) -> Answer | Missing:
        """Ask a service; what it cannot answer is Missing, and so is an answer that says so."""
        answer = await attempt(self._ask("GET", service, path, parameters=parameters), self._name(service))
        if isinstance(answer, Answer) and not answer.ok and answer.status != httpx.codes.NOT_FOUND:
            return Missing(f"{self._name(service)}: {answer.detail}")
        return answer

    async def get_list(self, service: str, path: str, most: int) -> list[dict[str, Any]] | Missing:
        """Read a list page by page, up to `most` entries."""
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while len(found) < most:
            answer = await self.get(service, path, limit=min(PAGE, most - len(found)), **after)
            if isinstance(answer, Missing):
                return answer
            found += answer.body.get("items", [])
            if not answer.body.get("nextCursor"):
                break
            after = {"cursor": answer.body["nextCursor"]}
        return found

    async def ready(self, service: str) -> str | None:
        """Return None if the service is ready, else what it or the network says."""
        answer = await attempt(self._ask("GET", service, "/readyz"), self._name(service))
        if isinstance(answer, Missing):
            return answer.why
        return None if answer.ok else answer.detail

    async def act(
        self, method: str, service: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Answer | Missing:
        """Have a service do something; a refusal is an answer."""
        asked = self._ask(method, service, path, body=body)
        return await attempt(asked, self._name(service), ACT_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(
        self,
        method: str,
        service: str,
        path: str,
        *,
        parameters: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        if self._client is None:
            limits = httpx.Limits(keepalive_expiry=KEEP_SECONDS)
            self._client = httpx.AsyncClient(timeout=ACT_SECONDS, limits=limits, trust_env=False)
        url = self.urls[service].rstrip("/") + path
        response = await self._client.request(method, url, params=dict(parameters or {}), json=body)
        try:
            content = response.json()
        except ValueError:
            content = {}
        return Answer(response.status_code, content if isinstance(content, dict) else {"items": content})

    def _name(self, service: str) -> str:
        return f"the {service} service at {self.urls.get(service, 'no known address')}"


def path(*parts: str) -> str:
    """Write a path; what stands in its parts cannot become more parts, a query or the way up."""
    return "/" + "/".join("%2E" * len(part) if part in (".", "..") else quote(part, safe="") for part in parts)
