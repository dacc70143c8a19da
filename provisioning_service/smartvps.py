"""The SmartVPS provider over HTTP: its three calls and the one place for their timeouts.

No part of an answer gets into an error or a log line, as it may hold a password.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import structlog
from prometheus_client import Histogram

from provisioning_service import smartvps_answers as answers
from provisioning_service.provider import Access, Package, ProviderError, UnansweredError
from shared import tracing

MAX_ANSWER_BYTES = 5 * 1024 * 1024
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are given up before servers do so: one that breaks under a purchase leaves its outcome unknown."""
SENDING = "http11.send_request_headers.started"
"""What httpcore reports just before it writes the first byte of a request."""

_PROXY_ERRORS = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)
"""What a proxy says in the provider's place: the provider itself may still be at it."""

_log = structlog.get_logger(__name__)
_seconds = Histogram(
    "provider_call_seconds",
    "Time until the server provider has answered, or has failed to",
    ["call", "outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180),
)


class _StoppedError(Exception):
    """Carries what `before_sending` raised past httpx, which could take it for an error of its own."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


class SmartVps:
    """Buys from SmartVPS; a `Provider`. Each timeout, in seconds, bounds its whole call; no call is ever repeated."""

    def __init__(
        self,
        *,
        url: str,
        username: str,
        password: str,
        buy_timeout: float,
        status_timeout: float,
        stock_timeout: float,
    ) -> None:
        self._buy_timeout = buy_timeout
        self._status_timeout = status_timeout
        self._stock_timeout = stock_timeout
        self._client = httpx.AsyncClient(
            base_url=url,
            auth=httpx.BasicAuth(username, password),
            headers={"Accept-Encoding": "identity"},
            # How many calls there are at once is for those to decide who make them.
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=20, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
        )
        # They log every request, and for debugging the headers of every answer; calls are measured here.
        for chatty in ("httpx", "httpcore"):
            logging.getLogger(chatty).setLevel(logging.WARNING)

    async def packages(self) -> Sequence[Package]:
        """List what is for sale at this moment; what cannot be read of it is left out, with a warning."""
        with _measured("ipstock"):
            body = await self._call("ipstock", None, self._stock_timeout)
            packages, left_out = answers.listed_packages(answers.decoded(body))
        for what in left_out:
            _log.warning("not readable in the provider's stock, left out", what=what)
        return packages

    async def buy(self, ip: str, ram: int | None, *, before_sending: Callable[[], None]) -> str:
        """Buy the server with that address and so many MB of memory; returns the IPv4 that was assigned.

        `before_sending` is called before the first byte of the request is written; what it raises is raised here, and
        nothing is sent.
        """
        order = {"ip": ip} if ram is None else {"ip": ip, "ram": ram}
        with _measured("buyvps"):
            body = await self._call("buyvps", order, self._buy_timeout, before_sending)
            return answers.assigned_ip(answers.decoded(body))

    async def access(self, ip: str) -> Access | None:
        """Return how to get into the server with that address; None if the provider has sold no such server."""
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
            raise UnansweredError(f"{call}: no answer within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise UnansweredError(f"{call}: the connection broke: {type(error).__name__}") from None

    async def _exchange(self, call: str, request: httpx.Request) -> bytes:
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()  # read also with an error, so that the connection can be used again
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ProviderError(f"{call}: an answer of more than {MAX_ANSWER_BYTES // 1024**2} MiB")
        finally:
            await response.aclose()
        if response.status_code == httpx.codes.NOT_FOUND:
            raise _NotFoundError(f"{call}: answered 404")
        if response.status_code in _PROXY_ERRORS:
            raise UnansweredError(f"{call}: answered {response.status_code}")
        if not response.is_success:
            raise ProviderError(f"{call}: answered {response.status_code}")
        return bytes(body)


class _NotFoundError(ProviderError):
    """The provider does not know what it was asked about."""


def _trace_extension(before_sending: Callable[[], None]) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    """Return what httpcore calls at every step of a request. A proxy's CONNECT goes ahead of the request itself."""

    async def trace(event: str, details: dict[str, Any]) -> None:
        if event == SENDING and details["request"].method == b"POST":
            try:
                before_sending()
            except BaseException as reason:  # noqa: BLE001 - raised again as it is, once httpx is left
                raise _StoppedError(reason) from None

    return trace


@contextmanager
def _measured(call: str) -> Iterator[None]:
    """Measure a call, and make an error of the provider of an answer that cannot be used.

    A call that was stopped from here, not by the provider, is not measured.
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
