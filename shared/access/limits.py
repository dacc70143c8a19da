"""Limits of requests: for each principal, and for failed authentications from each address.

They hold within one process: a service with several processes grants each limit once per process. The headers are those
of https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/.
"""

import ipaddress
import math
import time
from collections.abc import Mapping, Sequence

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import Scope

from shared.access.errors import TooManyRequestsError
from shared.access.permissions import Role
from shared.access.principal import Principal

MAX_COUNTED = 10_000
"""The most callers that are counted one by one at a time; all others share one count."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_refused = Counter("http_limited_total", "HTTP requests refused by a limit of their caller", ["reason"])


def parse_limit(text: str) -> RateLimitItem:
    """Return a limit such as `600/minute`. Raises ValueError."""
    try:
        return parse(text)
    except ValueError:
        raise ValueError("a number and a unit of time are allowed, such as 600/minute or 20/second") from None


class RequestLimits:
    """Counts requests, and refuses those beyond a limit. None as a limit switches it off."""

    def __init__(
        self,
        per_principal: RateLimitItem | None,
        failures: RateLimitItem | None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._per_principal = per_principal
        self._failures = failures
        self._trusted_proxies = trusted_proxies
        self._storage = MemoryStorage()
        self._limiter = FixedWindowRateLimiter(self._storage)

    async def count(self, caller: Principal) -> Mapping[str, str]:
        """Count a request and return the headers that tell the caller what is left.

        Admins are not limited: they place the orders of a load test, and act in an incident. Raises
        TooManyRequestsError.
        """
        limit = self._per_principal
        if limit is None or Role.ADMIN in caller.roles:
            return {}
        return await self._hit(limit, "principal", caller.id, f"You may send {limit}")

    async def count_failure(self, scope: Scope) -> None:
        """Count a failed authentication of the request's address. Raises TooManyRequestsError."""
        if self._failures is not None:
            address = counted_address(client_address(scope, self._trusted_proxies))
            await self._hit(self._failures, "failures", address, "Too many requests without a valid credential")

    async def _hit(self, limit: RateLimitItem, name: str, identifier: str, refusal: str) -> Mapping[str, str]:
        key = limit.key_for(name, identifier)
        if len(self._storage.expirations) >= MAX_COUNTED and key not in self._storage.expirations:
            identifier = "others"
        allowed = await self._limiter.hit(limit, name, identifier)
        stats = await self._limiter.get_window_stats(limit, name, identifier)
        reset = max(1, math.ceil(stats.reset_time - time.time()))
        headers = {
            "RateLimit-Policy": f'"{name}";q={limit.amount};w={limit.get_expiry()}',
            "RateLimit": f'"{name}";r={stats.remaining};t={reset}',
        }
        if not allowed:
            _refused.labels(name).inc()
            raise TooManyRequestsError(f"{refusal}; try again in {reset} s", {**headers, "Retry-After": str(reset)})
        return headers


def client_address(scope: Scope, trusted_proxies: Sequence[Network]) -> str:
    """Return the address that a request comes from.

    What a proxy says in X-Forwarded-For is believed only if the proxy is trusted: the last address that is not one.
    """
    client = scope.get("client")
    address = client[0] if client else "unknown"
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",") if trusted_proxies else []
    while forwarded and is_in(address, trusted_proxies):
        address = forwarded.pop().strip() or address
    return address


def counted_address(address: str) -> str:
    """Return the address as it is counted: of IPv6 the network of 64 bits, because a customer has at least that."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def is_in(address: str, networks: Sequence[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)
