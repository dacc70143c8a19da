"""Hides payment tokens and personal fields in the body of a message. Pure.

Whoever may edit letters sees bodies as they are. For all others the structure stays, so that a fault in it can be
found; ids, amounts and states stay too, because they are how an order is found and understood.
"""

import json
from typing import Any

MASK = "•••"

SECRET = frozenset({"token", "password", "credentials", "secret", "cardnumber", "cvc", "iban", "accountnumber"})
"""Fields that give access to money or to a server."""
PERSONAL = frozenset(
    {"customer", "address", "email", "phone", "line1", "line2", "postalcode", "instructions", "callbefore", "note"}
)
"""Fields about a person, with everything below them."""
MOST_MASKED = 1_000_000
"""The largest body that is masked, in bytes; of a larger one nothing is shown."""


def masked(body: bytes) -> bytes | None:
    """Return a JSON body with the values of SECRET and PERSONAL fields replaced; None if it is not JSON, or too large.

    What cannot be read cannot be masked, so nothing of it may be shown.
    """
    if len(body) > MOST_MASKED:
        return None
    try:
        return json.dumps(_masked(json.loads(body)), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(content) if _is_sensitive(name) else _masked(content) for name, content in value.items()}
    return [_masked(element) for element in value] if isinstance(value, list) else value


def _hidden(value: Any) -> Any:
    """Replace every value below, and keep the structure; null stays, because it says that nothing was given."""
    if isinstance(value, dict):
        return {name: _hidden(content) for name, content in value.items()}
    if isinstance(value, list):
        return [_hidden(element) for element in value]
    return None if value is None else MASK


def _is_sensitive(name: str) -> bool:
    return name.lower().replace("_", "").replace("-", "") in SECRET | PERSONAL
