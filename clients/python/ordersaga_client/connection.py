"""Where requests go, and when one is sent again: the settings that the two clients have in common."""

import os
import platform
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx

from ordersaga_client.calls import Call, Service
from ordersaga_client.errors import (
    ConfigurationError,
    NoAnswerError,
    OrdersagaError,
    RateLimitedError,
    UnavailableError,
    UnreadableAnswerError,
)

TIMEOUT = 10.0
STREAM_TIMEOUT = 45.0
"""Streams are silent for 15 s at most: then the service sends a comment."""
LIMITS = httpx.Limits(keepalive_expiry=2)
"""Services close idle connections after 5 s, and a request must not meet that."""

URL_VARIABLES: Mapping[Service, str] = {"order": "ORDERSAGA_ORDER_URL", "notification": "ORDERSAGA_NOTIFICATION_URL"}
KEY_VARIABLE = "ORDERSAGA_API_KEY"

Credential = str | Callable[[], str]
"""An API key or a JWT; or a function that returns one and is called for each request."""

_USER_AGENT = f"ordersaga-client/{version('ordersaga-client')} Python/{platform.python_version()}"
_REQUEST_ID = "X-Request-Id"
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and for how many seconds in all, a request is sent that fails for a while. One attempt: never again.

    A request that may have reached the service is only sent again if twice has the effect of once.
    """

    attempts: int = 10
    timeout: float = 30.0

    def seconds(self, call: Call[Any], timeout: float) -> float:
        """Return how long a call may be repeated, if one attempt takes `timeout` seconds without the service's waiting.

        A connection that breaks when the service has waited is thus repeated at least once.
        """
        return max(self.timeout, timeout) + call.wait if call.wait else self.timeout

    def decide(self, call: Call[Any]) -> Callable[[Exception], bool | float]:
        """Return what says, of an error, whether to send the request again, or after how many seconds."""

        def decision(error: Exception) -> bool | float:
            match error:
                case NoAnswerError():
                    return call.repeatable or not error.sent
                case RateLimitedError():  # without a time it is no limit of requests, and the same comes again
                    return error.retry_after is not None and self._within(error.retry_after)
                case UnavailableError() if call.repeatable:
                    return True if error.retry_after is None else self._within(error.retry_after)
            return False

        return decision

    def _within(self, seconds: float) -> bool | float:
        return seconds if seconds <= self.timeout else False


RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the services are, and how they are asked."""

    urls: Mapping[Service, str]
    credential: Credential | None
    timeout: float

    @classmethod
    def configured(
        cls, url: str | None, webhooks_url: str | None, credential: Credential | None, timeout: float
    ) -> "Connection":
        """Return a connection; what is not given is taken from the environment."""
        given: Mapping[Service, str | None] = {"order": url, "notification": webhooks_url}
        urls = {name: given[name] or os.environ.get(variable, "") for name, variable in URL_VARIABLES.items()}
        return cls(urls, credential or os.environ.get(KEY_VARIABLE), timeout)

    def request(
        self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], *, stream: bool = False
    ) -> httpx.Request:
        """Return the request of a call. Raises ConfigurationError if it is not known where to send it."""
        url = self._url(call.service)
        headers = {"User-Agent": _USER_AGENT, "Accept": "application/json", _REQUEST_ID: uuid.uuid4().hex}
        headers |= call.headers
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        if self.credential is not None:
            key = self.credential if isinstance(self.credential, str) else self.credential()
            headers["Authorization"] = f"Bearer {key}"
        read = STREAM_TIMEOUT if stream else self.timeout + call.wait
        return http.build_request(
            call.method,
            url.rstrip("/") + call.path,
            params=list(call.query),
            headers=headers,
            content=call.body,
            timeout=httpx.Timeout(self.timeout, read=read),
        )

    def _url(self, service: Service) -> str:
        parameter, url = "url" if service == "order" else "webhooks_url", self.urls[service]
        if not url:
            raise ConfigurationError(f"{parameter} is not given, and {URL_VARIABLES[service]} is not set")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{parameter} is {url!r}, which is no URL: {error}") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ConfigurationError(f"{parameter} is {url!r}, but must begin with http:// or https:// and a host")
        return url


def failure(error: httpx.RequestError) -> OrdersagaError:
    """Return our error for one of httpx."""
    request = f"{error.request.method} {error.request.url.path}"
    why = str(error) or type(error).__name__
    match error:
        case httpx.UnsupportedProtocol():
            return ConfigurationError(f"{request} cannot be sent: {why}")
        case httpx.TransportError():
            return NoAnswerError(
                f"{request} got no answer: {why}",
                sent=not isinstance(error, _NOT_SENT),
                request_id=error.request.headers[_REQUEST_ID],
            )
    return UnreadableAnswerError(f"{request} was answered with what cannot be read: {why}")
