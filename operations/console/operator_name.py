"""The name of the operator who acts, from a proxy's header or from a cookie. Pure but for the request that it reads."""

from urllib.parse import quote, unquote

from starlette.requests import Request

OPERATOR_COOKIE = "operator"
COOKIE_SECONDS = 180 * 24 * 3600
MOST_OF_A_NAME = 100


def operator_of(request: Request, header: str | None) -> str:
    """Return the operator's name, empty if it is not known: from the proxy's header if one is set, else the cookie."""
    if header:
        return request.headers.get(header, "").strip()[:MOST_OF_A_NAME]
    return unquote(request.cookies.get(OPERATOR_COOKIE, "")).strip()[:MOST_OF_A_NAME]


def cookie_value(name: str) -> str:
    """Write a name as a cookie can hold it."""
    return quote(name.strip()[:MOST_OF_A_NAME], safe="")
