"""Who sells servers to a stack: the provider that the environment names, else the simulator.

The credentials of what was sold are encrypted at rest. A key that `up` makes is kept in the data directory, beside the
data that it opens: another one after a restart could not read what was stored before.
"""

from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet

from operations.stack.files import write_private
from operations.stack.layout import SMARTVPS_URL_VARIABLE, Layout
from operations.stack.start import StartError

USERNAME_VARIABLE = "ORDERSAGA_SMARTVPS_USERNAME"
PASSWORD_VARIABLE = "ORDERSAGA_SMARTVPS_PASSWORD"  # noqa: S105 - a variable's name
KEY_VARIABLE = "ORDERSAGA_CREDENTIALS_KEY"
# Both, user and password, that the simulator asks for unless others are given.
SIMULATOR_LOGIN = "simulator"


def simulator_login(environment: Mapping[str, str]) -> dict[str, str]:
    """Return user and password of the simulator, as its settings and those of its client."""
    return {name: environment.get(name) or SIMULATOR_LOGIN for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE)}


def for_simulator(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment from which the simulator gets its settings."""
    return dict(environment) | simulator_login(environment)


def for_provisioning(layout: Layout, simulator_url: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of who buys: completed with the simulator, where one runs and no provider is given.

    Makes the key, where none is given and none is kept yet.
    """
    completed = dict(environment)
    if simulator_url and not environment.get(SMARTVPS_URL_VARIABLE):
        completed |= {SMARTVPS_URL_VARIABLE: simulator_url} | simulator_login(environment)
    if not environment.get(KEY_VARIABLE):
        completed[KEY_VARIABLE] = kept_key(layout.credentials_key)
    return completed


def kept_key(file: Path) -> str:
    """Return the key in the file, for its owner only; a new one where there is none yet.

    Raises StartError for a file that holds no key.
    """
    try:
        key = file.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        key = Fernet.generate_key().decode()
        write_private(file, f"{key}\n".encode())
    try:
        Fernet(key)
    except ValueError:
        raise StartError(
            f"{file} holds no valid key. Put the key back that was in it, or delete the file to have a new one made: "
            "credentials that are stored under the lost key can then not be read any more"
        ) from None
    return key
