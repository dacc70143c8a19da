"""The authenticator and the limits that the settings of a process ask for."""

from shared.access.authenticator import Authenticator
from shared.access.issuer import Issuer
from shared.access.key_file import KeyFile
from shared.access.limits import RequestLimits
from shared.access.tokens import TokenVerifier
from shared.errors import StartError
from shared.settings import ServiceSettings


def configured_authenticator(settings: ServiceSettings) -> Authenticator:
    """Return what recognizes the callers of a service.

    Raises StartError if a setting that it needs is missing, or a file cannot be used.
    """
    return Authenticator(
        _keys(settings) if "keys" in settings.auth else None, _tokens(settings) if "oidc" in settings.auth else None
    )


def configured_limits(settings: ServiceSettings) -> RequestLimits:
    """Return the limits of a service's callers."""
    return RequestLimits(settings.rate_limit, settings.auth_failure_limit, settings.trusted_proxies)


def _tokens(settings: ServiceSettings) -> TokenVerifier:
    for name, value in (("ISSUER", settings.oidc_issuer), ("AUDIENCE", settings.oidc_audience)):
        if not value:
            raise StartError(f"ORDERSAGA_OIDC_{name} is required with ORDERSAGA_AUTH={','.join(settings.auth)}")
    return TokenVerifier(
        Issuer(settings.oidc_issuer, settings.oidc_ca_file),
        settings.oidc_audience,
        roles_claim=settings.oidc_roles_claim,
        owner_claim=settings.oidc_owner_claim,
    )


def _keys(settings: ServiceSettings) -> KeyFile:
    if settings.keys_file is None:
        raise StartError(
            "ORDERSAGA_KEYS_FILE is required with ORDERSAGA_AUTH=keys: `ordersaga keys create` makes the file"
        )
    return KeyFile(settings.keys_file)
