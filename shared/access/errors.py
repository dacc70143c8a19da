"""The errors of authentication and of limits."""

from collections.abc import Mapping

from shared.errors import OrdersagaError, TransientError


class AuthenticationError(OrdersagaError):
    """A request does not say who calls, or not in a way that can be believed: HTTP answers 401.

    The message is for the caller. It never contains a part of the key or the token.
    """


class CredentialMissingError(AuthenticationError):
    """The request has no credential at all: the answer names no error, only what is needed."""


class TooManyRequestsError(OrdersagaError):
    """A caller has sent more requests than its limit allows: HTTP answers 429 with `headers`."""

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class IssuerUnavailableError(TransientError):
    """The OpenID Connect issuer has not told its keys yet, so no token can be verified."""

    for_clients = "The issuer of tokens does not answer at the moment, try again; API keys are not affected"


class SessionsUnavailableError(TransientError):
    """The sessions of people cannot be read, so it is not known who sends a request."""

    for_clients = "The sessions cannot be read at the moment, try again"
