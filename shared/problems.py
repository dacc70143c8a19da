"""The types of problem answers (RFC 9457): one for each case that a client may want to tell apart.

`type` of a problem is `/problems/<name>`, a path that every process serves as a page in words. Names are stable. The
whole table is drawn into docs/problems.md by `make docs`; the OpenAPI documents take their examples from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

PROBLEMS_PATH = "/problems"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One case: `title` is the same for all its problems, `meaning` says what it means and what to do."""

    name: str
    status: HTTPStatus
    title: str
    meaning: str
    example: str
    """The `detail` of such a problem."""

    @property
    def uri(self) -> str:
        """The `type` of its problems."""
        return f"{PROBLEMS_PATH}/{self.name}"

    def page(self) -> str:
        """Return its page, in plain text."""
        return f"{self.title} ({self.status.value})\n\n{self.meaning}\n\nExample of a detail: {self.example}\n"


_S = HTTPStatus

MALFORMED_JSON = ProblemType(
    "malformed-json",
    _S.BAD_REQUEST,
    "The body is not JSON",
    "Send JSON in UTF-8, without NaN and Infinity.",
    "The body is not JSON",
)
MALFORMED_REQUEST = ProblemType(
    "malformed-request",
    _S.BAD_REQUEST,
    "The request is not valid",
    "The request is not HTTP/1.1, or its headers contradict each other. The connection is closed.",
    "The request is not HTTP/1.1",
)
BOOKS_REFUSE = ProblemType(
    "books-refuse",
    _S.BAD_REQUEST,
    "The books do not allow it",
    "The accounts do not allow this operation, such as a payment of more than is due. Nothing has changed.",
    "Invoice 6b2d is paid already",
)
INSUFFICIENT_BALANCE = ProblemType(
    "insufficient-balance",
    _S.BAD_REQUEST,
    "The account holds too little",
    "The detail says what it holds and what was asked for. Nothing has changed.",
    "Retainer 5f0c holds 10 USD, 19.99 USD are asked for",
)
CREDENTIAL_MISSING = ProblemType(
    "credential-missing",
    _S.UNAUTHORIZED,
    "The request has no credential",
    "Send `Authorization: Bearer` with an API key or a token.",
    "The request has no credential: it needs the header Authorization",
)
CREDENTIAL_INVALID = ProblemType(
    "credential-invalid",
    _S.UNAUTHORIZED,
    "The credential is not valid",
    "The API key or token is unknown, revoked, expired or damaged. Repeating the request does not help.",
    "The API key is not known",
)
PERMISSION_MISSING = ProblemType(
    "permission-missing",
    _S.FORBIDDEN,
    "The caller lacks a permission",
    "The detail names the permission; docs/access.md says which roles have it.",
    "This needs orders:decide, which shop (client) does not have",
)
OTHER_PERSON = ProblemType(
    "other-person",
    _S.FORBIDDEN,
    "The caller may act for one person only",
    "`userId` must be the caller's own.",
    "You order for yourself only: userId is 'u2', yours is 'u1'",
)
SECOND_PERSON_NEEDED = ProblemType(
    "second-person-needed",
    _S.FORBIDDEN,
    "A second person must approve",
    "The amount is so large that the action is possible in the console only, where a second person approves it.",
    "Order 5f0c2b1e9d can only be refunded in the console, where a second person approves",
)
FORBIDDEN = ProblemType(
    "forbidden",
    _S.FORBIDDEN,
    "The request is refused",
    "It comes from a page of another site, or the person may not do this.",
    "Requests from another site are refused (Sec-Fetch-Site: cross-site)",
)
NOT_FOUND = ProblemType(
    "not-found",
    _S.NOT_FOUND,
    "It does not exist",
    "What the path names does not exist, or belongs to another owner.",
    "Order 5f0c2b1e9d does not exist",
)
UNKNOWN_PATH = ProblemType(
    "unknown-path",
    _S.NOT_FOUND,
    "The path does not exist",
    "No route has this path: compare it with the OpenAPI document.",
    "This path does not exist",
)
METHOD_NOT_ALLOWED = ProblemType(
    "method-not-allowed",
    _S.METHOD_NOT_ALLOWED,
    "The path does not have this method",
    "The header `Allow` lists the methods that it has.",
    "Method Not Allowed",
)
REQUEST_TIMEOUT = ProblemType(
    "request-timeout",
    _S.REQUEST_TIMEOUT,
    "The request did not arrive in time",
    "The connection is closed. Send the request again.",
    "The request body did not arrive in time",
)
CONFLICT = ProblemType(
    "conflict",
    _S.CONFLICT,
    "The present state does not allow it",
    "The detail says which state. Read the record again before the next attempt.",
    "The job of order 5f0c2b1e9d is QUEUED: there are no credentials",
)
ORDER_STATE = ProblemType(
    "order-state",
    _S.CONFLICT,
    "The order's status does not allow it",
    "The order has another status than the action needs. Read it again.",
    "Order 5f0c2b1e9d is COMPLETED: it cannot be cancelled",
)
NOT_REFUNDABLE = ProblemType(
    "not-refundable",
    _S.CONFLICT,
    "The order cannot be refunded in part",
    "Less is left of the amount or of the units than the refund asks for, or the order's status does not allow it.",
    "Order 5f0c2b1e9d cannot be refunded in part: 10 of it is left",
)
HOLD_REFUSED = ProblemType(
    "hold-refused",
    _S.CONFLICT,
    "The hold does not fit",
    "Nothing is held: the stock or the slot does not have that much, or a product cannot be held.",
    "Insufficient stock for p1: asked 3, free 1",
)
HOLD_OVER = ProblemType(
    "hold-over",
    _S.CONFLICT,
    "The hold is over",
    "It has expired, was deleted, or an order has taken it over.",
    "Hold 9b1c40d2 is over: it is EXPIRED",
)
PRODUCT_KIND = ProblemType(
    "product-kind",
    _S.CONFLICT,
    "The product is of another kind",
    "The kind of a product never changes, and only the provider knows the stock of servers.",
    "Product p1 exists and is not of kind vps",
)
SLOT_STATE = ProblemType(
    "slot-state",
    _S.CONFLICT,
    "The order's slot cannot be changed here",
    "The order is over, or has its slot by its own reservation: cancel the order instead.",
    "Order 5f0c2b1e9d is over: its reservation is RELEASED",
)
BODY_TOO_LARGE = ProblemType(
    "body-too-large",
    _S.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large",
    "A body may have 256 KiB, in at most 4096 chunks.",
    "The body is larger than 256 KiB",
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported-media-type",
    _S.UNSUPPORTED_MEDIA_TYPE,
    "The body is not declared as JSON",
    "Send `Content-Type: application/json`, and do not compress the body.",
    "The header Content-Type is 'text/plain', only application/json is allowed",
)
UNKNOWN_HOST = ProblemType(
    "unknown-host",
    _S.MISDIRECTED_REQUEST,
    "The process does not answer to this host",
    "Use an address, localhost, or a name in `ORDERSAGA_HTTP_NAMES`.",
    "This server does not answer to the host 'shop.example': add the name to ORDERSAGA_HTTP_NAMES",
)
INVALID_REQUEST = ProblemType(
    "invalid-request",
    _S.UNPROCESSABLE_ENTITY,
    "Fields of the request are invalid",
    "`errors` names each field, such as `items[0].quantity`, and says what is wrong with it.",
    "items[0].quantity: must be at least 1",
)
KEY_REUSED = ProblemType(
    "idempotency-key-reused",
    _S.UNPROCESSABLE_ENTITY,
    "The Idempotency-Key belongs to another request",
    "The key was used before with another body. Use a new key for a new request.",
    "Idempotency-Key was used before with another body; use a new key for a new order",
)
RATE_LIMITED = ProblemType(
    "rate-limited",
    _S.TOO_MANY_REQUESTS,
    "Too many requests",
    "Wait as long as `Retry-After` says. The `RateLimit` headers say what is left.",
    "More than 600 requests in a minute",
)
SLOTS_FULL = ProblemType(
    "slots-full",
    _S.TOO_MANY_REQUESTS,
    "No slot has room",
    "All delivery slots within the horizon are full for this price.",
    "No delivery slot with room for 30 until 2026-11-29T12:00:00Z",
)
TOO_MANY_HOLDS = ProblemType(
    "too-many-holds",
    _S.TOO_MANY_REQUESTS,
    "The user has too many holds",
    "Delete a hold, or wait until one expires.",
    "User u1 has 5 holds: delete one, or wait until one expires",
)
TOO_MANY_STREAMS = ProblemType(
    "too-many-streams",
    _S.TOO_MANY_REQUESTS,
    "Too many clients follow orders",
    "Request the order itself, or try again after `Retry-After`.",
    "200 clients follow orders already; request the order itself, or try again",
)
HEAD_TOO_LARGE = ProblemType(
    "head-too-large",
    _S.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The request line or the headers are too large",
    "The head of a request may have 32 KiB and 100 headers.",
    "The request line or the headers are too large",
)
INTERNAL_ERROR = ProblemType(
    "internal-error",
    _S.INTERNAL_SERVER_ERROR,
    "An unexpected error",
    "A defect of the service. It has been logged under the problem's `requestId`.",
    "An unexpected error; it has been logged",
)
UNAVAILABLE = ProblemType(
    "unavailable",
    _S.SERVICE_UNAVAILABLE,
    "The service cannot answer now",
    "It starts, or something that it needs is away or busy. Try again after `Retry-After`.",
    "The service is starting",
)
NOT_READY = ProblemType(
    "not-ready",
    _S.SERVICE_UNAVAILABLE,
    "The process is not ready",
    "Only `/readyz` answers with it; `down` names each part that does not work.",
    "rabbitmq: not connected",
)
DATABASE_UNAVAILABLE = ProblemType(
    "database-unavailable",
    _S.SERVICE_UNAVAILABLE,
    "The database does not answer",
    "Whether the request took effect is unknown: repeat a write under its `Idempotency-Key`.",
    "The database (MongoDB) does not answer at the moment, try again",
)
BROKER_UNAVAILABLE = ProblemType(
    "broker-unavailable",
    _S.SERVICE_UNAVAILABLE,
    "The message broker does not answer",
    "Try again after `Retry-After`.",
    "The message broker (RabbitMQ) does not answer at the moment, try again",
)
OVERLOADED = ProblemType(
    "overloaded",
    _S.SERVICE_UNAVAILABLE,
    "Too much is in progress",
    "Too many connections, or more orders than settle within `ORDERSAGA_MAX_SETTLE_SECONDS`. Nothing was stored. Try "
    "again after `Retry-After`.",
    "Too many orders are in progress: a new one would take about 21 s; nothing was stored, try again in 3 s",
)
PROVIDER_UNAVAILABLE = ProblemType(
    "provider-unavailable",
    _S.SERVICE_UNAVAILABLE,
    "What the answer needs is not available",
    "The server provider does not answer or is not configured, or no key decrypts the credentials.",
    "No server provider is configured",
)

OUTCOME_UNKNOWN = ProblemType(
    "outcome-unknown",
    _S.GATEWAY_TIMEOUT,
    "It is unknown whether the order was stored",
    "Only a request without an `Idempotency-Key` is answered so; do not just repeat it, there may be two orders then. "
    "`Location` is where the order is, if it was stored: if it still does not exist a minute later, send it again.",
    "The database (MongoDB) did not answer in time: order 5f0c2b1e9d may have been stored",
)

PROBLEM_TYPES: Mapping[str, ProblemType] = {
    each.name: each for each in list(globals().values()) if isinstance(each, ProblemType)
}
"""All types by name, in the order of their statuses."""

PROBLEM_PATHS = frozenset(each.uri for each in PROBLEM_TYPES.values())
"""The paths of their pages."""

_GENERAL = {
    each.status: each
    for each in (
        *(MALFORMED_REQUEST, CREDENTIAL_INVALID, FORBIDDEN, NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT, CONFLICT),
        *(BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, UNKNOWN_HOST, INVALID_REQUEST, RATE_LIMITED, HEAD_TOO_LARGE),
        *(INTERNAL_ERROR, UNAVAILABLE, OUTCOME_UNKNOWN),
    )
}


def general_type(status: HTTPStatus) -> ProblemType | None:
    """Return the type of a problem of which no more than the status is known."""
    return _GENERAL.get(status)
