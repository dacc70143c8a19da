"""Decide which requests are answered: by the host that they name, and by the site that a browser says they come from.

A web page can make a browser send requests to any address that the browser reaches, also to 127.0.0.1. Two checks keep
such pages out. The host must be an address, localhost or a configured name, so a name that was pointed at this address
(DNS rebinding) gets no answer. And a request from another site is refused: every maintained browser marks it with
Sec-Fetch-Site, or with Origin over plain HTTP, and pages cannot change these headers. Clients that are not browsers
send neither and are not affected. Pure functions.
"""

import ipaddress
from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

_NO_HOST = frozenset("/?#@\\")
"""Characters that end or begin the host in a URL: no Host header has them."""

_OWN_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site for requests of our own pages and of the browser's user."""


def objection_to_host(host: str, names: Collection[str]) -> str | None:
    """Say why a request that names this host is refused, None if it is not.

    Addresses and localhost cannot be pointed elsewhere by a stranger; other names must be configured, in lower case.
    """
    name = _host_name(host)
    if name is not None and (name == "localhost" or name in names or _is_address(name)):
        return None
    return f"This server does not answer to the host {host[:100]!r}: add the name to ORDERSAGA_HTTP_NAMES"


def objection_to_site(method: str, headers: Mapping[str, str], *, page: bool) -> str | None:
    """Say why a request that may come from another site is refused, None if it is not.

    A link on another site may open a `page` in a new tab, which that site cannot read; no other request from another
    site is answered.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        allowed = site in _OWN_SITES or (page and _opens_a_tab(method, headers))
        return None if allowed else _from_elsewhere("Sec-Fetch-Site", site)
    if origin is None or _is_own(origin, headers):
        return None
    return _from_elsewhere("Origin", origin)


def objection_to_write(headers: Mapping[str, str]) -> str | None:
    """Say why a write is refused that only our own pages may send, None if it comes from one of them."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site == "same-origin" else _from_elsewhere("Sec-Fetch-Site", site)
    if origin is None:
        return "The request does not say which site it comes from: it needs the header Sec-Fetch-Site or Origin"
    return None if _is_own(origin, headers) else _from_elsewhere("Origin", origin)


def _from_elsewhere(header: str, value: str) -> str:
    return f"Requests from another site are refused ({header}: {value[:100]})"


def _opens_a_tab(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether this is a navigation to a whole page, not one into a frame and not a form's."""
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_own(origin: str, headers: Mapping[str, str]) -> bool:
    try:
        place = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return place != "" and place == headers.get("host", "").lower()


@lru_cache(maxsize=256)
def _host_name(host: str) -> str | None:
    """Return the name in a Host header without port and final dot, None if it is invalid."""
    if not _NO_HOST.isdisjoint(host):
        return None
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.removesuffix(".") if name else None


@lru_cache(maxsize=256)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
