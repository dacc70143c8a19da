"""The OpenAPI document of a service: what the framework derives from the routes, completed by what it cannot know.

Names of operations come from the names of the functions, summaries from the first sentence of their docstrings, and the
problems of each operation from its parameters, its body and what its route declares with `documented`. Every body and
every problem has an example, which the schemas' own examples take precedence over.
"""

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from pydantic.alias_generators import to_camel, to_pascal

from shared import problems
from shared.examples import Examples
from shared.guard import SAFE_METHODS
from shared.problems import PROBLEM_TYPES, ProblemType, general_type
from shared.request_id import REQUEST_ID_HEADER
from shared.validation import header_name

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
SECURITY_SCHEME = "bearer"
TYPES = "x-problem-types"
"""Within the responses of a route: the types of its problems, until the document is complete."""

DESCRIPTION = """\
%s.

- **Credentials**: `Authorization: Bearer` with an API key (`osk_…`) or a token of the OpenID Connect issuer.
- **Amounts** are JSON numbers with at most two decimals, **times** are RFC 3339 in UTC.
- **Lists** have `items` and `nextCursor`. Pass it as `cursor` to get the next page; it is null on the last one.
- **Idempotency**: operations with the header `Idempotency-Key` take effect once when repeated under the same key.
- **Problems** are answers with a status of 400 or more (RFC 9457). Programs read `type`, never `detail`.
- **Requests** have an id. Send `X-Request-Id` to choose it; every answer names it.
"""

TAGS = {
    "health": "Whether the process works",
    "consumer": "Whether the messages of the service's inbox are consumed",
    "access": "Who calls",
    "orders": "Placing, following and deciding orders",
    "products": "What is sold, and for how much",
    "inventory": "What is free to sell",
    "reservations": "What is held for an order",
    "slots": "Delivery slots and their capacity",
    "holds": "Stock and slots that are held before an order is placed",
    "payments": "The payments of orders",
    "funds": "Retainers, invoices, payments, bank accounts, transfers and the ledger",
    "webhooks": "Endpoints that hear of orders, and the deliveries to them",
    "state": "What is away, and the figures of the overview",
    "bulk actions": "Actions on many orders",
    "dead letters": "Messages that could not be handled, by cause, and their replays",
    "actions": "Who did what and why, and what waits for a second person",
    "notifications": "Which incidents are sent to the outside, and what came of it",
    "provisioning": "Servers, the packages that they are bought from, and their locks",
}
"""The tags of operations, each with its description."""

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key (`osk_…`) or a JWT of the OpenID Connect issuer",
}
_HEADERS = {
    REQUEST_ID_HEADER: ("The id of the request, as in the log", {"type": "string", "examples": ["7f3a9c0e5d2b4816"]}),
    "Retry-After": ("Seconds to wait before the next attempt", {"type": "integer", "examples": [1]}),
    "Location": (
        "The path of what was created, or of what shows the progress of the request",
        {"type": "string", "examples": ["/orders/5f0c2b1e9d"]},
    ),
    "Preference-Applied": (
        "The preference that the answer has followed: it has waited",
        {"type": "string", "examples": ["wait=10"]},
    ),
    "Idempotent-Replayed": (
        "The key and the body were used before: nothing was done again",
        {"type": "string", "const": "true"},
    ),
    "RateLimit": (
        "How many requests are left and for how many seconds, if requests are limited",
        {"type": "string", "examples": ['"principal";r=599;t=60']},
    ),
    "RateLimit-Policy": (
        "How many requests are allowed in how many seconds, if requests are limited",
        {"type": "string", "examples": ['"principal";q=600;w=60']},
    ),
    "WWW-Authenticate": ("How to authenticate (RFC 6750)", {"type": "string", "examples": ["Bearer"]}),
}
_OF_LIMITS = ("RateLimit", "RateLimit-Policy")
_OPTIONAL = frozenset({"Preference-Applied", "Idempotent-Replayed", "Retry-After", *_OF_LIMITS})
"""The headers that not every answer has which declares them."""

_OF_STATUS = {401: ("WWW-Authenticate",), 429: ("Retry-After", *_OF_LIMITS), 503: ("Retry-After",)}
_EVERYWHERE = (problems.UNKNOWN_HOST, problems.FORBIDDEN, problems.INTERNAL_ERROR, problems.UNAVAILABLE)
_OF_CALLERS = (
    *(problems.CREDENTIAL_MISSING, problems.CREDENTIAL_INVALID, problems.PERMISSION_MISSING, problems.RATE_LIMITED),
    *(problems.DATABASE_UNAVAILABLE, problems.BROKER_UNAVAILABLE),
)
_OF_BODIES = (problems.MALFORMED_JSON, problems.BODY_TOO_LARGE)


def documented(*answers: int | ProblemType) -> dict[int | str, dict[str, Any]]:
    """Return the description of problem answers for the `responses` of a route: types, or statuses in general."""
    found: dict[int | str, dict[str, Any]] = {}
    for answer in answers:
        kind = answer if isinstance(answer, ProblemType) else general_type(HTTPStatus(answer))
        if kind is not None:
            response = found.setdefault(kind.status.value, {"description": kind.status.phrase, TYPES: []})
            response[TYPES].append(kind.name)
    return found


def with_headers(*names: str) -> dict[str, Any]:
    """Return the description of headers for an answer among the `responses` of a route."""
    return {"headers": _header_references(names)}


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation: that of its function."""
    return to_camel(route.name)


def words_of(docstring: str | None) -> tuple[str | None, str | None]:
    """Divide a docstring into the summary, which is its first sentence, and the whole text."""
    if not docstring:
        return None, None
    text = re.sub(r"(?<!\n)\n(?!\n)\s*", " ", docstring.strip())
    return re.split(r"[.;:] |\.$|\.\n", text, maxsplit=1)[0], text


def completed(document: dict[str, Any], problem_schema: dict[str, Any]) -> dict[str, Any]:
    """Complete the framework's document of a service, in place, and return it."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    definitions = problem_schema.pop("$defs", {})
    schemas |= {name: definition for name, definition in definitions.items() if name not in schemas}
    schemas["Problem"] = problem_schema
    for schema in schemas.values():
        if "properties" in schema and "examples" in schema:
            schema["examples"] = [_with_nulls(schema, example) for example in schema["examples"]]
    info = document["info"]
    info["description"] = DESCRIPTION % info.get("description", info["title"])
    info["license"] = {"name": "Apache 2.0", "identifier": "Apache-2.0"}
    document["servers"] = [{"url": "/", "description": "The process that serves this document"}]
    examples = Examples(schemas)
    shared: dict[str, dict[str, Any]] = {}
    for method, operation in _operations_with_methods(document):
        _complete(method, operation, examples, shared)
    components["responses"] = dict(sorted(shared.items()))
    for schema in ("HTTPValidationError", "ValidationError"):
        schemas.pop(schema, None)
    answers = [answer for each in _operations(document) for answer in each["responses"].values()]
    named = {name for answer in (*answers, *shared.values()) for name in answer.get("headers", ())}
    components["headers"] = {
        name: {"description": words, **({} if name in _OPTIONAL else {"required": True}), "schema": schema}
        for name, (words, schema) in _HEADERS.items()
        if name in named
    }
    used = {name for answer in shared.values() for name in answer["content"][PROBLEM_JSON]["examples"]}
    components["examples"] = {name: _example(PROBLEM_TYPES[name]) for name in sorted(used)}
    if any(map(_needs_caller, _operations(document))):
        components.setdefault("securitySchemes", {})[SECURITY_SCHEME] = _BEARER
    tags = dict.fromkeys(tag for operation in _operations(document) for tag in operation["tags"])
    document["tags"] = [{"name": tag, "description": TAGS.get(tag, tag.capitalize())} for tag in tags]
    components["schemas"] = dict(sorted(schemas.items()))
    return document


def _with_nulls(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Return the example with its fields in order, and those that are null, which the framework leaves out."""
    required = schema.get("required", ())
    return {name: example.get(name) for name in schema["properties"] if name in example or name in required}


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for _, operation in _operations_with_methods(document):
        yield operation


def _operations_with_methods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for methods in document["paths"].values():
        yield from ((method.upper(), operation) for method, operation in methods.items())


def _needs_caller(operation: dict[str, Any]) -> bool:
    return {SECURITY_SCHEME: []} in operation["security"]


def _complete(method: str, operation: dict[str, Any], examples: Examples, shared: dict[str, dict[str, Any]]) -> None:
    operation.setdefault("security", [])
    operation.setdefault("tags", ["health"])
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "header":
            parameter["name"] = header_name(parameter["name"])
    if body := operation.get("requestBody"):
        _add_example(body["content"], examples, of_request=True)
    answers = {code: answer for code, answer in operation["responses"].items() if int(code) < HTTPStatus.BAD_REQUEST}
    for code, answer in answers.items():
        _add_example(answer.get("content", {}), examples, of_request=False)
        names = [REQUEST_ID_HEADER, *(["Location"] if code in ("201", "202") else [])]
        names += ["Idempotent-Replayed"] if _has_key(operation) else []
        names += _OF_LIMITS if _needs_caller(operation) else []
        answer.setdefault("headers", {}).update(_header_references(names))
        if answer.get("description") == "Successful Response":
            answer["description"] = HTTPStatus(int(code)).phrase
    declared = [PROBLEM_TYPES[name] for answer in operation["responses"].values() for name in answer.get(TYPES, ())]
    kinds = list(dict.fromkeys([*declared, *_general_types(method, operation)]))
    for status in dict.fromkeys(kind.status for kind in kinds):
        name = _answer_name(status, [kind for kind in declared if kind.status is status], operation)
        shared.setdefault(name, _problem_answer(status, [kind for kind in kinds if kind.status is status]))
        answers[str(status.value)] = {"$ref": f"#/components/responses/{name}"}
    operation["responses"] = dict(sorted(answers.items()))


def _answer_name(status: HTTPStatus, declared: list[ProblemType], operation: dict[str, Any]) -> str:
    """Return the name of an answer: of its status, of the types that the route declares, of what else it depends on."""
    if declared == [general_type(status)]:
        declared = []
    parts = [status.phrase.replace(" ", ""), *(to_pascal(kind.name.replace("-", "_")) for kind in declared)]
    if not _needs_caller(operation) and status in {kind.status for kind in _OF_CALLERS}:
        parts.append("OpenToAll")
    if status is HTTPStatus.UNPROCESSABLE_ENTITY and _has_key(operation):
        parts.append("WithKey")
    return "".join(parts)


def _general_types(method: str, operation: dict[str, Any]) -> Iterator[ProblemType]:
    """Yield the types of the problems that an operation may answer with, by what it takes."""
    parameters = operation.get("parameters", ())
    if _needs_caller(operation):
        yield from _OF_CALLERS
    if "requestBody" in operation:
        yield from _OF_BODIES
    # Also where no body is expected: one that is sent all the same must be JSON.
    if method not in SAFE_METHODS or "requestBody" in operation:
        yield problems.UNSUPPORTED_MEDIA_TYPE
    if parameters or "requestBody" in operation:
        yield problems.INVALID_REQUEST
    if _has_key(operation):
        yield problems.KEY_REUSED
    if any(parameter["in"] == "path" for parameter in parameters):
        yield problems.NOT_FOUND
    yield from _EVERYWHERE


def _has_key(operation: dict[str, Any]) -> bool:
    return any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ()))


def _problem_answer(status: HTTPStatus, kinds: list[ProblemType]) -> dict[str, Any]:
    examples = {kind.name: {"$ref": f"#/components/examples/{kind.name}"} for kind in kinds}
    return {
        "description": status.phrase,
        "headers": _header_references([REQUEST_ID_HEADER, *_OF_STATUS.get(status.value, ())]),
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _header_references(names: Iterable[str]) -> dict[str, dict[str, str]]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _add_example(content: dict[str, Any], examples: Examples, *, of_request: bool) -> None:
    media = content.get(JSON)
    if media and media.get("schema") and not {"example", "examples"} & media.keys():
        media["example"] = examples.of(media["schema"], all_fields=not of_request)


def _example(kind: ProblemType) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": kind.uri,
        "title": kind.title,
        "status": kind.status.value,
        "detail": kind.example,
        "requestId": "7f3a9c0e5d2b4816",
    }
    if kind.status is HTTPStatus.UNPROCESSABLE_ENTITY:
        field, separator, message = kind.example.partition(": ")
        wrong = (field, message) if separator else ("Idempotency-Key", kind.example)
        value["errors"] = [{"field": wrong[0], "message": wrong[1]}]
    return {"summary": kind.title, "value": value}
