"""Configures the provider of servers of a stack: the one in the environment, else the simulator."""

from collections.abc import Mapping

from operations.stack.encryption_keys import with_key
from operations.stack.layout import SMARTVPS_URL_VARIABLE, Layout

USERNAME_VARIABLE = "ORDERSAGA_SMARTVPS_USERNAME"
PASSWORD_VARIABLE = "ORDERSAGA_SMARTVPS_PASSWORD"  # noqa: S105 - a variable's name
KEY_VARIABLE = "ORDERSAGA_CREDENTIALS_KEY"
# Both user and password of the simulator, unless others are given.
SIMULATOR_LOGIN = "simulator"


def simulator_login(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the user and the password for the settings of the simulator and of its client."""
    return {name: environment.get(name) or SIMULATOR_LOGIN for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE)}


def configured_provider(simulator_url: str | None, environment: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
    """Return the URL and the login of the provider in the environment, else of the simulator; None without either."""
    if url := environment.get(SMARTVPS_URL_VARIABLE):
        return url, {name: environment.get(name, "") for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE)}
    return (simulator_url, simulator_login(environment)) if simulator_url else None


def simulator_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the simulator."""
    return dict(environment) | simulator_login(environment)


def provisioning_settings(layout: Layout, simulator_url: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the provisioning service, with the simulator's address if no provider is given.

    Creates a key if none is given and none exists yet.
    """
    completed = dict(environment)
    if simulator_url and not environment.get(SMARTVPS_URL_VARIABLE):
        completed |= {SMARTVPS_URL_VARIABLE: simulator_url} | simulator_login(environment)
    return with_key(KEY_VARIABLE, layout.credentials_key, completed)
