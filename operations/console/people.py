"""Who sends a request to the console: a person with a session, or one whom a trusted proxy names."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from pymongo.errors import PyMongoError
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from operations.console.assets import ASSETS
from operations.sign_in.person import MOST_OF_A_NAME, Person
from operations.sign_in.sessions import Sessions
from shared.access.errors import AuthenticationError, SessionsUnavailableError
from shared.access.limits import Network, is_in
from shared.access.permissions import Role
from shared.access.principal import Principal

SIGN_IN = "/sign-in"
SIGN_IN_LINK = "/sign-in/link"
SIGN_IN_OIDC = "/sign-in/oidc"
SIGN_IN_CALLBACK = "/sign-in/callback"
OPEN_PATHS = frozenset({SIGN_IN, SIGN_IN_LINK, SIGN_IN_OIDC, SIGN_IN_CALLBACK, *(f"/static/{name}" for name in ASSETS)})
"""The pages that answer to everybody."""

_COOKIE = "ordersaga"
_ROLE_NAMES = frozenset(str(role) for role in Role)


@dataclass(frozen=True, slots=True)
class IdentityProxy:
    """A proxy that authenticates people: the headers in which it names them, and the addresses it is believed at."""

    name_header: str
    roles_header: str
    addresses: Sequence[Network]

    def person(self, scope: Scope) -> Person | None:
        """Return the person that the proxy names; None if the request does not come from it, or it names none.

        Raises AuthenticationError if a header occurs twice: somebody else may have added one.
        """
        client, headers = scope.get("client"), Headers(scope=scope)
        if client is None or not is_in(client[0], self.addresses):
            return None
        name, roles = (self._only(headers, header) for header in (self.name_header, self.roles_header))
        if not name:
            return None
        if len(name) > MOST_OF_A_NAME or not name.isprintable():
            raise AuthenticationError(f"{self.name_header} is not a name of 1 to {MOST_OF_A_NAME} printable characters")
        known = frozenset(Role(word) for word in roles.replace(",", " ").split() if word in _ROLE_NAMES)
        return Person(name, name, known)

    def _only(self, headers: Headers, header: str) -> str:
        values = headers.getlist(header)
        if len(values) > 1:
            raise AuthenticationError(f"The request has the header {header} {len(values)} times")
        # Servers read headers as Latin-1; proxies write names as UTF-8.
        return values[0].encode("latin-1").decode("utf-8", "replace").strip() if values else ""


class ConsolePeople:
    """The people of the console."""

    open_paths = OPEN_PATHS

    def __init__(self, sessions: Sessions, proxy: IdentityProxy | None = None, public_url: str | None = None) -> None:
        self._sessions = sessions
        self._public_url = public_url
        self._proxy = proxy

    async def person(self, scope: Scope) -> Principal | None:
        """Return the person who sends a request, None if it is not known.

        Raises AuthenticationError, or SessionsUnavailableError if the sessions cannot be read.
        """
        connection = HTTPConnection(scope)
        if "authorization" in connection.headers:
            return None
        person = self._proxy.person(scope) if self._proxy else None
        secret = connection.cookies.get(cookie_name(is_secure(scope, self._public_url)))
        if person is None and secret:
            active = "hx-request" not in connection.headers
            try:
                person = await self._sessions.find(secret[:200], active=active)
            except PyMongoError as error:
                raise SessionsUnavailableError(f"sessions not read: {error}") from None
        return person.principal() if person else None

    def answer_unknown(self, scope: Scope) -> Response | None:
        """Lead a browser to the page for signing in, and back to the present page afterwards."""
        headers = Headers(scope=scope)
        if "authorization" in headers:
            return None
        if "hx-request" in headers:
            shown = urlsplit(headers.get("hx-current-url", ""))
            return Response(status_code=401, headers={"HX-Redirect": sign_in_address(shown.path, shown.query)})
        if "text/html" not in headers.get("accept", ""):
            return None
        if scope["method"] not in ("GET", "HEAD"):
            return RedirectResponse(SIGN_IN, 303)
        return RedirectResponse(sign_in_address(scope["path"], scope["query_string"].decode("latin-1")), 303)


def is_secure(scope: Scope, public_url: str | None) -> bool:
    """Return whether browsers reach the console over https, perhaps through a proxy that ends TLS."""
    return scope["scheme"] == "https" or (public_url or "").startswith("https:")


def cookie_name(secure: bool, purpose: str = "") -> str:
    """Return the name of a cookie; over https it begins so that only this host can set it, and only over https."""
    return f"{'__Host-' if secure else ''}{_COOKIE}{purpose}"


def sign_in_address(path: str, query: str = "") -> str:
    """Return the address of the page for signing in, which leads to a page of the console afterwards."""
    target = local_target(f"{quote(path)}?{query}" if query else quote(path))
    return SIGN_IN if target == "/" else f"{SIGN_IN}?next={quote(target, safe='/')}"


def local_target(address: str) -> str:
    """Return an address if it is the path of a page of the console, else that of the overview.

    Browsers read a backslash as a slash, and leave out tabs and line ends: such addresses may lead to another site.
    """
    safe = address.startswith("/") and not address.startswith("//") and len(address) <= 2000
    if not safe or "\\" in address or not address.isascii() or not address.isprintable():
        return "/"
    return "/" if address.startswith((SIGN_IN, "/sign-out")) else address
