"""Configures the provider of servers of a stack: the one in the environment, else the simulator.

The credentials of sold servers are stored encrypted. The key that `up` creates is kept in the data directory beside the
data: with a new key after a restart, the stored credentials could not be decrypted.
"""

from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet

from operations.stack.files import write_private
from operations.stack.layout import SMARTVPS_URL_VARIABLE, Layout
from operations.stack.start import StackStartError
from provisioning_service.credentials import read_keys
from shared.setting_files import SUFFIX

USERNAME_VARIABLE = "ORDERSAGA_SMARTVPS_USERNAME"
PASSWORD_VARIABLE = "ORDERSAGA_SMARTVPS_PASSWORD"  # noqa: S105 - a variable's name
KEY_VARIABLE = "ORDERSAGA_CREDENTIALS_KEY"
# Both user and password of the simulator, unless others are given.
SIMULATOR_LOGIN = "simulator"


def simulator_login(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the user and the password for the settings of the simulator and of its client."""
    return {name: environment.get(name) or SIMULATOR_LOGIN for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE)}


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
    if not environment.get(KEY_VARIABLE):
        check_or_create_key(layout.credentials_key)
        # By its file, which the service reads again when it changes.
        completed.pop(KEY_VARIABLE, None)
        completed[f"{KEY_VARIABLE}{SUFFIX}"] = str(layout.credentials_key)
    return completed


def check_or_create_key(file: Path) -> None:
    """Check that the file has keys; create it with one, readable by its owner only, if it does not exist.

    Raises StackStartError if the file does not contain a key.
    """
    try:
        keys = file.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        keys = Fernet.generate_key().decode()
        write_private(file, f"{keys}\n".encode())
    try:
        read_keys(keys)
    except ValueError:
        raise StackStartError(
            f"{file} does not contain a valid key. Restore the original key, or delete the file to create a new one: "
            "credentials that were encrypted with the lost key can then no longer be read"
        ) from None
