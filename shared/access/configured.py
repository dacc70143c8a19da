"""The authenticator that the settings of a process ask for."""

from shared.access.authenticator import Authenticator
from shared.access.key_file import KeyFile
from shared.errors import StartError
from shared.settings import ServiceSettings


def configured_authenticator(settings: ServiceSettings) -> Authenticator:
    """Return what recognizes the callers of a service. Raises StartError if a file that it needs cannot be used."""
    return Authenticator(_keys(settings) if "keys" in settings.auth else None)


def _keys(settings: ServiceSettings) -> KeyFile:
    if settings.keys_file is None:
        raise StartError(
            "ORDERSAGA_KEYS_FILE is required with ORDERSAGA_AUTH=keys: `ordersaga keys create` makes the file"
        )
    return KeyFile(settings.keys_file)
