"""The file of API keys, as JSON. `ordersaga keys` changes it; every process reads it again when it has changed."""

import os
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from shared.access.keys import KeyRecord
from shared.access.permissions import Role
from shared.contracts.base import Name
from shared.errors import StartError
from shared.watched_files import CHECK_SECONDS, WatchedFiles


class _StoredKey(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: Role
    owner: Name
    subject: Name | None = None
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
    """The keys in a file, by id. A new key is known at once, any other change within CHECK_SECONDS of a request."""

    def __init__(self, path: Path, check_seconds: float = CHECK_SECONDS) -> None:
        """Read the file. Raises StartError if it is missing, damaged or writable by others."""
        try:
            self._keys = WatchedFiles([path], lambda: _read(path), "API keys", check_seconds=check_seconds)
        except (OSError, ValueError) as error:
            raise StartError(f"ORDERSAGA_KEYS_FILE={path} cannot be used: {_reason(error)}") from None

    def find(self, key_id: str) -> KeyRecord | None:
        """Return the key of this id, None if there is none."""
        known = self._keys.current().get(key_id)
        # To look at the file's time costs less than to answer: whoever has just made a key uses it next.
        return known if known is not None else self._keys.refresh().get(key_id)


def _read(path: Path) -> Mapping[str, KeyRecord]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"others may write to it (mode {mode:04o}): chmod 600 {path}")
    return {key.id: key for key in parse_keys(path.read_bytes())}


def _reason(error: OSError | ValueError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
