"""The file of API keys, as JSON. `ordersaga keys` changes it; every process reads it again when it has changed."""

import os
import stat
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from shared.access.keys import KeyRecord
from shared.access.permissions import Role
from shared.errors import StartError

CHECK_SECONDS = 2.0
"""How long a change of the file may go unnoticed."""

_log = structlog.get_logger(__name__)


class _StoredKey(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Role
    owner: Annotated[str, Field(min_length=1, max_length=200)]
    subject: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    name: Annotated[str, Field(max_length=200)]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None


class _StoredKeys(BaseModel):
    keys: list[_StoredKey]


def parse_keys(content: bytes) -> list[KeyRecord]:
    """Return the keys in the content of a file. Raises ValueError with what is wrong, without any of the content."""
    try:
        stored = _StoredKeys.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{place}: {first['msg']}") from None
    return [KeyRecord(**dict(key)) for key in stored.keys]


def format_keys(keys: Iterable[KeyRecord]) -> bytes:
    """Return the content of a file with these keys."""
    fields = _StoredKey.model_fields
    stored = [_StoredKey.model_validate({name: getattr(key, name) for name in fields}) for key in keys]
    text = _StoredKeys(keys=stored).model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return f"{text}\n".encode()


class KeyFile:
    """The keys in a file, by id. A change is noticed within CHECK_SECONDS, while requests arrive."""

    def __init__(self, path: Path, check_seconds: float = CHECK_SECONDS) -> None:
        """Read the file. Raises StartError if it is missing, damaged or writable by others."""
        self._path = path
        self._check_seconds = check_seconds
        try:
            self._version = self._current_version()
            self._keys = self._read()
        except (OSError, ValueError) as error:
            raise StartError(f"ORDERSAGA_KEYS_FILE={path} cannot be used: {_reason(error)}") from None
        self._checked = time.monotonic()

    def find(self, key_id: str) -> KeyRecord | None:
        """Return the key of this id."""
        if time.monotonic() - self._checked >= self._check_seconds:
            self._read_if_changed()
        return self._keys.get(key_id)

    def _read_if_changed(self) -> None:
        """Read the file if it has changed. If that fails, keep the keys that were valid before, and log why."""
        self._checked = time.monotonic()
        version = self._version
        try:
            version = self._current_version()
            if version != self._version:
                self._keys = self._read()
                _log.info("API keys read again", keys=len(self._keys))
        except (OSError, ValueError) as error:
            if version != self._version or isinstance(error, OSError):
                _log.error("API keys cannot be read, the former ones stay valid", why=_reason(error))
        self._version = version

    def _current_version(self) -> tuple[int, int, int]:
        found = self._path.stat()
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            raise ValueError(f"others may write to it (mode {mode:04o}): chmod 600 {self._path}")
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> Mapping[str, KeyRecord]:
        return {key.id: key for key in parse_keys(self._path.read_bytes())}


def _reason(error: OSError | ValueError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
