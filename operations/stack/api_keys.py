"""Creates, revokes and replaces the API keys in a file. Running services notice a change within seconds."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from operations.errors import CommandError
from operations.stack.files import write_private
from operations.stack.layout import Layout
from shared.access.key_file import format_keys, parse_keys
from shared.access.keys import KeyRecord, is_secret_of, new_key, split_key
from shared.access.permissions import Role
from shared.clock import utc_now

OWN_KEYS = ("commands", "console")
"""The keys that a stack makes for itself: one for the command line, one for the console."""
OWN_OWNER = "ordersaga"
"""The owner of what the demo and the load test create."""
OVERLAP = timedelta(hours=24)
"""How long a key that was replaced stays valid, so that its users have time to change over."""

T = TypeVar("T")


class KeyFileError(CommandError):
    """The file of API keys cannot be read or written, or does not have the key that was named."""


def list_keys(file: Path) -> list[KeyRecord]:
    """Return the keys in a file, none if it does not exist. Raises KeyFileError."""
    try:
        return parse_keys(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _unusable(file, error) from None


def create_key(
    file: Path,
    role: Role,
    owner: str,
    name: str,
    *,
    subject: str | None = None,
    lifetime: timedelta | None = None,
) -> str:
    """Add a key to the file, which is created if needed; return the key, which cannot be shown again.

    Raises KeyFileError, also if a key for a customer has no subject, or another one has.
    """
    if (role is Role.CUSTOMER) != (subject is not None):
        raise KeyFileError("A key for a customer needs a subject, the userId of its orders; other keys have none")
    now = utc_now()
    expires = now + lifetime if lifetime is not None else None

    def add(keys: Sequence[KeyRecord]) -> tuple[Sequence[KeyRecord], str]:
        key, record = _new(role, owner, name, subject, now, expires)
        return [*keys, record], key

    return _change(file, add)


def revoke_key(file: Path, key_id: str) -> KeyRecord:
    """Make a key invalid, now; return its record. Raises KeyFileError if there is none, or it is already invalid."""
    now = utc_now()

    def revoke(keys: Sequence[KeyRecord]) -> tuple[Sequence[KeyRecord], KeyRecord]:
        revoked = replace(_valid(file, keys, key_id, now), revoked=now)
        return [revoked if key.id == key_id else key for key in keys], revoked

    return _change(file, revoke)


def rotate_key(file: Path, key_id: str) -> tuple[str, KeyRecord]:
    """Replace a key by a new one with the same rights and lifetime; the former one stays valid for OVERLAP.

    Returns the new key and the record of the former one. Raises KeyFileError if there is none, or it is invalid.
    """
    now = utc_now()

    def rotate(keys: Sequence[KeyRecord]) -> tuple[Sequence[KeyRecord], tuple[str, KeyRecord]]:
        former = _valid(file, keys, key_id, now)
        expires = now + (former.expires - former.created) if former.expires else None
        key, record = _new(former.role, former.owner, former.name, former.subject, now, expires)
        ending = replace(former, expires=min(former.expires or now + OVERLAP, now + OVERLAP))
        return [*(ending if key.id == key_id else key for key in keys), record], (key, ending)

    return _change(file, rotate)


def ensure_own_key(layout: Layout, name: str, role: Role = Role.ADMIN) -> str:
    """Return the stack's key of this name, such as one of OWN_KEYS; create it if it is missing or no longer valid.

    Raises KeyFileError, and OSError if the directory cannot be written to.
    """
    secret_file = own_key_file(layout, name)
    with contextlib.suppress(FileNotFoundError):
        key = secret_file.read_text("ascii", errors="replace").strip()
        if _is_valid(layout.keys, key):
            return key
    secret_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = create_key(layout.keys, role, OWN_OWNER, name)
    write_private(secret_file, f"{key}\n".encode())
    return key


def own_key_file(layout: Layout, name: str) -> Path:
    """Return the file with the stack's key of this name."""
    return layout.secrets / f"api-key-{name}"


def _is_valid(file: Path, key: str) -> bool:
    parts = split_key(key)
    found = [record for record in list_keys(file) if parts and record.id == parts[0]]
    return any(is_secret_of(record, parts[1]) and not record.why_invalid(utc_now()) for record in found if parts)


def _new(
    role: Role, owner: str, name: str, subject: str | None, created: datetime, expires: datetime | None
) -> tuple[str, KeyRecord]:
    key, key_id, sha256 = new_key()
    return key, KeyRecord(key_id, sha256, role, owner, name, created, subject, expires)


def _valid(file: Path, keys: Sequence[KeyRecord], key_id: str, now: datetime) -> KeyRecord:
    found = next((key for key in keys if key.id == key_id), None)
    if found is None:
        raise KeyFileError(f"{file} has no key {key_id[:100]!r}; `ordersaga keys list` shows the ids")
    if why := found.why_invalid(now):
        raise KeyFileError(f"the key {key_id} is already {why}")
    return found


def _change(file: Path, change: Callable[[Sequence[KeyRecord]], tuple[Sequence[KeyRecord], T]]) -> T:
    """Replace the keys in the file. Only one process does so at a time."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(file):
            changed, result = change(list_keys(file))
            write_private(file, format_keys(changed))
    except OSError as error:
        raise _unusable(file, error) from None
    return result


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    # A file of its own: the file of keys is replaced, and a lock on it would be one on the former file.
    descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unusable(file: Path, error: OSError | ValueError) -> KeyFileError:
    return KeyFileError(f"the API keys in {file} cannot be used: {getattr(error, 'strerror', None) or error}")
