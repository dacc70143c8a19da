"""The routes of an application without a new TypeAdapter for each parameter, which takes half of an API test's time.

Tests build the same applications hundreds of times, and FastAPI builds each route twice. What an adapter does depends
only on what it was built of, so one serves all.
"""

from typing import Any, get_args

from fastapi._compat import v2
from pydantic import TypeAdapter

_adapters: dict[object, tuple[object, TypeAdapter[Any]]] = {}


def share_adapters() -> None:
    """Let FastAPI use an adapter again that it has built of the same type, metadata and configuration."""
    v2.TypeAdapter = _adapter  # type: ignore[attr-defined, assignment]


def _adapter(annotation: Any, *, config: Any = None) -> TypeAdapter[Any]:
    kind, *metadata = get_args(annotation)
    # Metadata cannot be hashed. Its text names functions by their address: these are kept, so it is never given again.
    key = (kind, repr(metadata), repr(config))
    try:
        found = _adapters.get(key)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(annotation, config=config)
    if found is None:
        found = _adapters[key] = (annotation, TypeAdapter(annotation, config=config))
    return found[1]
