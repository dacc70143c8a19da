"""Reads the operator's name from a proxy's header or a cookie. Pure."""

from urllib.parse import quote, unquote

from starlette.requests import Request

OPERATOR_COOKIE = "operator"
COOKIE_SECONDS = 180 * 24 * 3600
MOST_OF_A_NAME = 100


def operator_of(request: Request, header: str | None) -> str:
    """Return the operator's name, from the proxy's header if one is set, else from the cookie; empty if unknown."""
    if header:
        return request.headers.get(header, "").strip()[:MOST_OF_A_NAME]
    return unquote(request.cookies.get(OPERATOR_COOKIE, "")).strip()[:MOST_OF_A_NAME]


def cookie_value(name: str) -> str:
    """Encode a name for a cookie."""
    return quote(name.strip()[:MOST_OF_A_NAME], safe="")
