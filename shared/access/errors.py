"""The errors of authentication."""

from shared.errors import OrdersagaError


class AuthenticationError(OrdersagaError):
    """A request does not say who calls, or not in a way that can be believed: HTTP answers 401.

    The message is for the caller. It never contains a part of the key or the token.
    """
