"""The random passwords of a stack, one file each in its data directory, readable by their owner only."""

import re
import secrets
from collections.abc import Callable
from pathlib import Path

from operations.stack.files import write_private
from operations.stack.start import StackStartError

SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{16,200}")


def new_secret() -> str:
    """Return a random secret."""
    return secrets.token_urlsafe(SECRET_BYTES)


def load_or_create_secret(directory: Path, name: str, create: Callable[[], str] = new_secret) -> str:
    """Return the secret of this name, such as `mongodb-order`; create one if there is none yet.

    It has only characters that need no escaping in a URL. Raises StackStartError if the file has something else, and
    OSError if the file cannot be read or written.
    """
    file = directory / name
    try:
        secret = file.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = create()
        write_private(file, f"{secret}\n".encode())
    if not _SECRET.fullmatch(secret):
        raise StackStartError(
            f"{file} does not contain a password: restore the original, which the server still expects"
        )
    return secret
