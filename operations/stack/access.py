"""The settings with which the services of a stack recognize callers, and the keys of the stack itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from operations.stack.api_keys import ensure_own_key, own_key_file
from operations.stack.layout import API_KEY_VARIABLE, AUTH_VARIABLE, KEYS_FILE_VARIABLE, Layout
from operations.stack.start import StackStartError

OFF = "off"


@dataclass(frozen=True)
class Access:
    """Settings for the services, and the key with which the console calls them (None without authentication)."""

    settings: Mapping[str, str]
    console_key: str | None = field(repr=False)

    @property
    def console_settings(self) -> dict[str, str]:
        """Return the settings that only the console gets."""
        return {API_KEY_VARIABLE: self.console_key or ""}


def plan_access(layout: Layout, environment: Mapping[str, str]) -> Access:
    """Return how callers are recognized: by the keys of this stack, unless the environment says otherwise.

    Creates the stack's own keys where they are missing. Raises StackStartError if the console and the commands could
    not call the services, and KeyFileError or OSError if the keys cannot be read or written.
    """
    methods = {method.strip() for method in (environment.get(AUTH_VARIABLE) or "keys").split(",")}
    if methods == {OFF}:
        return Access({AUTH_VARIABLE: OFF}, None)
    if "keys" not in methods:
        raise StackStartError(
            f"{AUTH_VARIABLE}={environment[AUTH_VARIABLE]} leaves out API keys, with which the console and the "
            "commands call the services: add keys, as in keys,oidc"
        )
    if not environment.get(KEYS_FILE_VARIABLE):
        ensure_own_key(layout, "commands")
        return Access({KEYS_FILE_VARIABLE: str(layout.keys)}, ensure_own_key(layout, "console"))
    if not environment.get(API_KEY_VARIABLE):
        raise StackStartError(
            f"{API_KEY_VARIABLE} is required with {KEYS_FILE_VARIABLE}: the console calls the services with this key"
        )
    return Access({}, environment[API_KEY_VARIABLE])


def key_of_commands(layout: Layout, environment: Mapping[str, str]) -> str | None:
    """Return the key that commands use: the one in the environment, else the stack's own; None if there is neither."""
    if given := environment.get(API_KEY_VARIABLE):
        return given
    return _read(own_key_file(layout, "commands"))


def _read(file: Path) -> str | None:
    try:
        return file.read_text("ascii", errors="replace").strip() or None
    except OSError:
        return None
