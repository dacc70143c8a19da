"""Settings whose file is read again when it changes, so that a secret is replaced without a stop."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from shared.errors import StartError
from shared.setting_files import SUFFIX
from shared.settings import ENV_PREFIX, FileSettings, load
from shared.watched_files import WatchedFiles


class LiveSecret(Protocol):
    """A secret that may change while the process runs."""

    def current(self) -> str:
        """Return the secret; a change of its file is noticed within seconds."""

    def refresh(self) -> str:
        """Return the secret after looking at its file now."""


class FixedSecret:
    """A secret that does not change."""

    def __init__(self, value: str) -> None:
        self._value = value

    def current(self) -> str:
        """Return the secret."""
        return self._value

    def refresh(self) -> str:
        """Return the secret."""
        return self._value


def as_secret(value: str | LiveSecret) -> LiveSecret:
    """Return the secret, a text as one that does not change."""
    return FixedSecret(value) if isinstance(value, str) else value


def live_secret(settings: FileSettings, name: str) -> LiveSecret | None:
    """Return the secret with this name in the settings; None if it is not set.

    If it was read from a file, the file is read again when it has changed. An invalid value is logged once, without the
    value, and the former one stays in use.
    """
    value = _value(settings, name)
    if value is None:
        return None
    variable = f"{ENV_PREFIX}{name.upper()}"
    path = os.environ.get(f"{variable}{SUFFIX}")
    if not path:
        return FixedSecret(value)
    return WatchedFiles([Path(path)], _reader(type(settings), name, variable), variable)


def _reader(kind: type[FileSettings], name: str, variable: str) -> Callable[[], str]:
    def read() -> str:
        value = _value(load(kind), name)  # checked like at the start
        if value is None:
            raise StartError(f"{variable} is not set any more")
        return value

    return read


def _value(settings: FileSettings, name: str) -> str | None:
    value = getattr(settings, name)
    return value.get_secret_value() if isinstance(value, SecretStr) else value
