"""The console's requests to services and servers, with an Unavailable result instead of an error."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import pymongo
import structlog
from pymongo.errors import PyMongoError

from operations.errors import UnreachableError
from operations.incidents.changes import Release
from operations.reading.requests import NOT_SENT
from operations.search.hits import Hit
from shared.access.authenticator import acts_for_header
from shared.access.principal import Principal
from shared.errors import TransientError
from shared.outage_words import in_words, with_detail
from shared.tls import client_context

READ_SECONDS = 3.0
"""The time limit for a part of a page."""

ACT_SECONDS = 15.0
"""The time limit for an operator's action."""

KEEP_SECONDS = 2.0
"""The lifetime of an idle connection: services close theirs after 75 s, which must not hit a request."""

PAGE = 100
"""The largest page that services return."""

PAUSE_FACTOR = 20
"""The pause between two costly readings for pages, as a multiple of the time that one takes."""

_log = structlog.get_logger(__name__)
T = TypeVar("T")
_acting_person: ContextVar[Principal | None] = ContextVar("acting_person", default=None)


@contextmanager
def acting_for(person: Principal | None) -> Iterator[None]:
    """Send every request in this context for a person: services let it do what both the console and the person may."""
    token = _acting_person.set(person)
    try:
        yield
    finally:
        _acting_person.reset(token)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The result of a request that failed, with the reason; if `sent`, the service may have executed it.

    `refusal` is what a service answered that refuses the request.
    """

    why: str
    sent: bool = True
    refusal: "ServiceResponse | None" = None


class ServiceResponse(NamedTuple):
    """The response of a service; `body` is empty if it was not JSON."""

    status: int
    body: dict[str, Any]
    repeated: bool = False
    """Whether the request had been answered before, under its key, and changed nothing now."""

    @property
    def ok(self) -> bool:
        """True if the request succeeded."""
        return self.status < 400

    @property
    def detail(self) -> str:
        """The error that the service reported."""
        return str(self.body.get("detail") or f"it answered with status {self.status}")


async def attempt(asked: Awaitable[T], what: str, seconds: float = READ_SECONDS) -> T | Unavailable:
    """Await a result; return the failure instead of raising if a server does not respond."""
    try:
        # The driver's limit ends its own calls cleanly; the outer one is for everything else.
        async with asyncio.timeout(seconds + 1):
            with pymongo.timeout(seconds):
                return await asked
    except TimeoutError:
        return Unavailable(f"{what} did not answer in time")
    except (PyMongoError, UnreachableError, TransientError, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        _log.warning("not available", what=what, error=with_detail(error))
        return Unavailable(f"{what}: {in_words(error)}", sent=not isinstance(error, NOT_SENT))


async def why_not(asked: Awaitable[list[Hit]]) -> list[Hit] | str:
    """Await what a place has; return why it cannot be read instead of raising that."""
    found = await attempt(asked, "MongoDB")
    return found.why if isinstance(found, Unavailable) else found


class Health(NamedTuple):
    """Why a service does not answer; else what in it does not work, and since when, by the names of the parts.

    `paused` says since when, and until when, the consumption of its inbox is paused.
    """

    why: str | None
    down: Mapping[str, str] = {}
    since: Mapping[str, datetime] = {}
    ready: bool = True
    paused: tuple[datetime, datetime | None] | None = None

    @property
    def problem(self) -> str | None:
        """The problem in one line, None if everything works."""
        if self.why is not None or not self.down:
            return self.why
        parts = "; ".join(f"{name}: {why}" for name, why in self.down.items())
        return f"degraded: {parts}" if self.ready else parts


def _as_pause(shown: object) -> tuple[datetime, datetime | None] | None:
    since = _as_time(shown.get("since")) if isinstance(shown, dict) else None
    return (since, _as_time(shown.get("until"))) if since and isinstance(shown, dict) else None


def _as_time(text: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo else None


class Services:
    """The HTTP interfaces of the services, by name."""

    def __init__(self, urls: Mapping[str, str], api_key: str | None = None) -> None:
        """Call the services at these URLs, with the key unless they answer without one."""
        self.urls = dict(urls)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client: httpx.AsyncClient | None = None

    async def get(self, service: str, path: str, **parameters: str | int) -> ServiceResponse | Unavailable:
        """Send a GET request; every failure but 404 is Unavailable."""
        response = await attempt(self._ask("GET", service, path, parameters=parameters), self._name(service))
        if isinstance(response, ServiceResponse) and not response.ok and response.status != httpx.codes.NOT_FOUND:
            return Unavailable(f"{self._name(service)}: {response.detail}", refusal=response)
        return response

    async def get_list(
        self, service: str, path: str, most: int, **parameters: str
    ) -> list[dict[str, Any]] | Unavailable:
        """Read a list, up to `most` items."""
        found: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while len(found) < most:
            response = await self.get(service, path, limit=min(PAGE, most - len(found)), **parameters, **after)
            if isinstance(response, Unavailable):
                return response
            found += response.body.get("items", [])
            if not response.body.get("nextCursor"):
                break
            after = {"cursor": response.body["nextCursor"]}
        return found

    async def health(self, service: str) -> Health:
        """Return what the service says about itself, or why it does not answer."""
        response = await attempt(self._ask("GET", service, "/readyz"), self._name(service))
        if isinstance(response, Unavailable):
            return Health(response.why)
        down, since = response.body.get("down"), response.body.get("since")
        paused = _as_pause(response.body.get("paused"))
        if not isinstance(down, dict) or not isinstance(since, dict):
            return Health(None if response.ok else response.detail, paused=paused)
        times = {name: at for name, text in since.items() if (at := _as_time(text)) is not None}
        return Health(None, {str(name): str(why) for name, why in down.items()}, times, response.ok, paused)

    async def release(self, service: str) -> Release | None:
        """Return which release a process of the service runs and since when, None if none answers that."""
        response = await attempt(self._ask("GET", service, "/healthz"), self._name(service))
        if isinstance(response, Unavailable) or (started_at := _as_time(response.body.get("startedAt"))) is None:
            return None
        return Release(started_at, str(response.body.get("version")))

    async def act(
        self, method: str, service: str, path: str, body: Mapping[str, Any] | None = None, key: str | None = None
    ) -> ServiceResponse | Unavailable:
        """Send a request that changes something, once under its key if it has one; a refusal is a response."""
        asked = self._ask(method, service, path, body=body, key=key)
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
        key: str | None = None,
    ) -> ServiceResponse:
        if self._client is None:
            limits = httpx.Limits(keepalive_expiry=KEEP_SECONDS)
            self._client = httpx.AsyncClient(
                timeout=ACT_SECONDS, limits=limits, trust_env=False, verify=client_context()
            )
        url = self.urls[service].rstrip("/") + path
        person = _acting_person.get()
        headers = self._headers | (acts_for_header(person) if person else {})
        headers |= {"Idempotency-Key": key} if key else {}
        reply = await self._client.request(method, url, params=dict(parameters or {}), json=body, headers=headers)
        try:
            content = reply.json()
        except ValueError:
            content = {}
        repeated = reply.headers.get("Idempotent-Replayed") == "true"
        return ServiceResponse(
            reply.status_code, content if isinstance(content, dict) else {"items": content}, repeated
        )

    def _name(self, service: str) -> str:
        return f"the {service} service"


def path(*parts: str) -> str:
    """Join parts to a path, escaped so that no part can add segments, a query or `..`."""
    return "/" + "/".join(
        "%2E" * len(part) if part in (".", "..") else quote(part, safe="", errors="replace") for part in parts
    )
