"""The keys with which services encrypt secrets in their databases, each in a file of the data directory.

They are kept beside the data: with a new key after a restart, what is stored could not be decrypted.
"""

from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet

from operations.stack.files import write_private
from operations.stack.layout import Layout
from operations.stack.start import StackStartError
from shared.sealing import read_keys
from shared.setting_files import SUFFIX

WEBHOOK_KEY_VARIABLE = "ORDERSAGA_WEBHOOK_KEY"


def notification_settings(layout: Layout, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the notification service. Creates its key if none is given and none exists yet."""
    return with_key(WEBHOOK_KEY_VARIABLE, layout.webhook_key, environment)


def with_key(variable: str, file: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the file of a key, which is created if it does not exist, unless a key is given."""
    completed = dict(environment)
    if not environment.get(variable):
        check_or_create_key(file)
        # By its file, which the service reads again when it changes.
        completed.pop(variable, None)
        completed[f"{variable}{SUFFIX}"] = str(file)
    return completed


def check_or_create_key(file: Path) -> str:
    """Return the keys in a file; create it with one, readable by its owner only, if it does not exist.

    Raises StackStartError if the file does not contain a key.
    """
    try:
        keys = file.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        keys = Fernet.generate_key().decode()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, f"{keys}\n".encode())
    try:
        read_keys(keys)
    except ValueError:
        raise StackStartError(
            f"{file} does not contain a valid key. Restore the original key, or delete the file to create a new one: "
            "what was encrypted with the lost key can then no longer be read"
        ) from None
    return keys
