"""Who acts in the present request to the console."""

from contextvars import ContextVar

from shared.access.principal import Principal

acting: ContextVar[Principal | None] = ContextVar("acting", default=None)
"""The person who has signed in; None if the request comes with a key, or callers are not known at all."""
