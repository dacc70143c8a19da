"""Who sells servers to a stack: the provider that the environment names, else the simulator.

The credentials of what was sold are encrypted at rest. A key that `up` makes is kept in the data directory, beside the
data that it opens: another one after a restart could not read what was stored before.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet

from operations.native.layout import AMQP_URL_VARIABLE, MONGODB_URL_VARIABLE, SMARTVPS_URL_VARIABLE, Layout

USERNAME_VARIABLE = "ORDERSAGA_SMARTVPS_USERNAME"
PASSWORD_VARIABLE = "ORDERSAGA_SMARTVPS_PASSWORD"  # noqa: S105 - a variable's name
KEY_VARIABLE = "ORDERSAGA_CREDENTIALS_KEY"
# Both, user and password, that the simulator asks for unless others are given.
SIMULATOR_LOGIN = "simulator"


def simulator_login(environment: Mapping[str, str]) -> dict[str, str]:
    """Return user and password of the simulator, as its settings and those of its client."""
    return {name: environment.get(name) or SIMULATOR_LOGIN for name in (USERNAME_VARIABLE, PASSWORD_VARIABLE)}


def for_simulator(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the simulator's environment: it stands for somebody else's machine, which knows nothing of this stack."""
    of_the_stack = (MONGODB_URL_VARIABLE, AMQP_URL_VARIABLE, KEY_VARIABLE)
    others = {name: value for name, value in environment.items() if name not in of_the_stack}
    return others | simulator_login(environment)


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
    """Return the key in the file, for its owner only; a new one where there is none yet."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        key = Fernet.generate_key().decode()
    # Written beside and moved, as a whole: half a key would be kept, and refused, for ever.
    written = file.with_suffix(".new")
    written.unlink(missing_ok=True)
    with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(f"{key}\n")
        opened.flush()
        os.fsync(opened.fileno())
    written.replace(file)
    return key
