"""Who may post to the console, and in whose name. Pure but for the request that it looks at.

No token is needed against cross-site posts: every browser that is still maintained says in a header that pages cannot
set where a post comes from (Sec-Fetch-Site, or Origin over plain HTTP), and a post that does not say so is refused.
That the request names a host that is ours keeps out pages whose name was pointed at this address (DNS rebinding).
"""

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import quote, unquote, urlsplit

from starlette.requests import Request

OPERATOR_COOKIE = "operator"
COOKIE_SECONDS = 180 * 24 * 3600
MOST_OF_A_NAME = 100


def objection_to_host(host: str | None, allowed: Collection[str]) -> str | None:
    """Say why the console does not answer under this host name; None if it does.

    Addresses and localhost cannot be pointed elsewhere by somebody else; names have to be in the setting.
    """
    name = (urlsplit(f"//{host}").hostname or "") if host and _is_readable(host) else ""
    if name == "localhost" or name in allowed or _is_address(name):
        return None
    return f"The console is not known as {host!r}: add the name to ORDERSAGA_CONSOLE_HOSTS"


def objection_to_post(headers: Mapping[str, str]) -> str | None:
    """Say why a post is refused that may come from another site; None if it comes from a page of ours."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return None if site == "same-origin" else f"The post comes from another site (Sec-Fetch-Site: {site})"
    if origin is None:
        return "The post does not say where it comes from (neither Sec-Fetch-Site nor Origin)"
    ours = _is_readable(origin) and urlsplit(origin).netloc == headers.get("host")
    return None if ours else f"The post comes from another site (Origin: {origin})"


def operator_of(request: Request, header: str | None) -> str:
    """Return the operator's name, empty if it is not known: from the proxy's header if one is set, else the cookie."""
    if header:
        return request.headers.get(header, "").strip()[:MOST_OF_A_NAME]
    return unquote(request.cookies.get(OPERATOR_COOKIE, "")).strip()[:MOST_OF_A_NAME]


def cookie_value(name: str) -> str:
    """Write a name as a cookie can hold it."""
    return quote(name.strip()[:MOST_OF_A_NAME], safe="")


def _is_readable(text: str) -> bool:
    """Whether it can be taken apart as an address at all."""
    try:
        urlsplit(text if "//" in text else f"//{text}").hostname  # noqa: B018 - raises for what is no address
    except ValueError:
        return False
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
