"""The SmartVPS provider over HTTP: its three calls and their timeouts.

No part of an answer appears in an error or a log line, because it may contain a password.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import structlog
from prometheus_client import Histogram

from provisioning_service import smartvps_answers as answers
from provisioning_service.provider import Access, Package, ProviderError, ProviderUnansweredError
from shared import tracing
from shared.live_settings import LiveSecret, as_secret

MAX_ANSWER_BYTES = 5 * 1024 * 1024
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are closed before a server closes them: one that breaks during a purchase leaves it unknown."""
SENDING = "http11.send_request_headers.started"
"""The event that httpcore reports just before it writes the first byte of a request."""

_PROXY_ERRORS = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)
"""Answers of a proxy: the provider itself may still be processing the request."""

_log = structlog.get_logger(__name__)
_seconds = Histogram(
    "provider_call_seconds",
    "Time until the server provider answered or failed to answer",
    ["call", "outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180),
)


class _StoppedError(Exception):
    """Carries an exception of `before_sending` past httpx, which could mistake it for its own."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


class _Login(httpx.Auth):
    """HTTP Basic authentication with the present user and password."""

    def __init__(self, username: LiveSecret, password: LiveSecret) -> None:
        self._username = username
        self._password = password

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the login; after a refusal the next request looks for a changed one at once."""
        basic = httpx.BasicAuth(self._username.current(), self._password.current())
        answer = yield next(basic.auth_flow(request))
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._username.refresh()
            self._password.refresh()


class SmartVps:
    """SmartVPS as a `Provider`. Each timeout, in seconds, bounds one whole call; no call is ever repeated."""

    def __init__(
        self,
        *,
        url: str,
        username: str | LiveSecret,
        password: str | LiveSecret,
        buy_timeout: float,
        status_timeout: float,
        stock_timeout: float,
    ) -> None:
        self._buy_timeout = buy_timeout
        self._status_timeout = status_timeout
        self._stock_timeout = stock_timeout
        self._client = httpx.AsyncClient(
            base_url=url,
            auth=_Login(as_secret(username), as_secret(password)),
            headers={"Accept-Encoding": "identity"},
            # The callers limit the number of concurrent calls.
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
        )
        # These libraries log every request and, at debug level, the headers of every answer. Calls are measured here.
        for library in ("httpx", "httpcore"):
            logging.getLogger(library).setLevel(logging.WARNING)

    async def packages(self) -> Sequence[Package]:
        """Return the packages for sale at this moment; skip unreadable parts with a warning."""
        with _measured("ipstock"):
            body = await self._call("ipstock", None, self._stock_timeout)
            packages, left_out = answers.listed_packages(answers.decoded(body))
        for what in left_out:
            _log.warning("skipping an unreadable part of the provider's stock", what=what)
        return packages

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        """Buy the server with this address and `ram` MB of memory; return the assigned IPv4.

        `before_sending` is called before the first byte of the request is written. If it raises an exception, nothing
        is sent and the exception is raised here.
        """
        order = {"ip": ip} if ram is None else {"ip": ip, "ram": ram}
        with _measured("buyvps"):
            body = await self._call("buyvps", order, self._buy_timeout, before_sending)
            return answers.assigned_ip(answers.decoded(body))

    async def access(self, ip: str) -> Access | None:
        """Return the access to the server with this address; None if the provider has sold no such server."""
        with _measured("status"):
            try:
                body = await self._call("status", {"ip": ip}, self._status_timeout)
            except _NotFoundError:
                return None
            return answers.access(answers.decoded(body), ip)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(
        self,
        call: str,
        body: dict[str, Any] | None,
        seconds: float,
        before_sending: Callable[[], None] | None = None,
    ) -> bytes:
        extensions = {"trace": _trace_extension(before_sending)} if before_sending else None
        request = self._client.build_request(
            "POST", f"/api/oceansmart/{call}", json=body, timeout=seconds, extensions=extensions
        )
        try:
            with tracing.calling(f"{call} at the provider"):
                async with asyncio.timeout(seconds):
                    return await self._exchange(call, request)
        except _StoppedError as stopped:
            raise stopped.reason from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ProviderError(f"{call}: could not connect: {str(error)[:200] or type(error).__name__}") from None
        except (TimeoutError, httpx.TimeoutException):
            raise ProviderUnansweredError(f"{call}: no answer within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise ProviderUnansweredError(f"{call}: the connection broke: {type(error).__name__}") from None

    async def _exchange(self, call: str, request: httpx.Request) -> bytes:
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()  # read it even after an error, so that the connection can be reused
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ProviderError(f"{call}: an answer of more than {MAX_ANSWER_BYTES // 1024**2} MiB")
        finally:
            await response.aclose()
        if response.status_code == httpx.codes.NOT_FOUND:
            raise _NotFoundError(f"{call}: answered 404")
        if response.status_code in _PROXY_ERRORS:
            raise ProviderUnansweredError(f"{call}: answered {response.status_code}")
        if not response.is_success:
            raise ProviderError(f"{call}: answered {response.status_code}")
        return bytes(body)


class _NotFoundError(ProviderError):
    """The provider does not know the requested resource."""


def _trace_extension(before_sending: Callable[[], None]) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    """Return the trace function that httpcore calls at every step of a request."""

    async def trace(event: str, details: dict[str, Any]) -> None:
        # With a proxy, a CONNECT request precedes the POST.
        if event == SENDING and details["request"].method == b"POST":
            try:
                before_sending()
            except BaseException as reason:  # noqa: BLE001 - raised again outside httpx
                raise _StoppedError(reason) from None

    return trace


@contextmanager
def _measured(call: str) -> Iterator[None]:
    """Measure a call, and turn an unusable answer into a ProviderError.

    A call that ended for another reason, such as a cancellation, is not measured.
    """
    started = time.perf_counter()

    def observe(outcome: str) -> None:
        _seconds.labels(call, outcome).observe(time.perf_counter() - started)

    try:
        yield
    except answers.UnusableAnswerError as error:
        observe("error")
        raise ProviderError(f"{call}: {error}") from None
    except ProviderError:
        observe("error")
        raise
    observe("ok")
