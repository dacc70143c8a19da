"""Where everything of one stack lies, which directory is meant when none is named, and its default ports."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from operations.errors import DataDirectoryError
from operations.stack.files import write_private

DATA_DIRECTORY_VARIABLE = "ORDERSAGA_DATA_DIR"
MONGODB_URL_VARIABLE = "ORDERSAGA_MONGODB_URL"
AMQP_URL_VARIABLE = "ORDERSAGA_AMQP_URL"
SMARTVPS_URL_VARIABLE = "ORDERSAGA_SMARTVPS_URL"
DATABASE_PREFIX_VARIABLE = "ORDERSAGA_DATABASE_PREFIX"
DEFAULT_DATA_DIRECTORY = ".ordersaga"

# What a stack listens on unless it is taken or an offset is given. The services' ports are in `services`.
SERVER_PORTS = {"mongodb": 27017, "amqp": 5672, "distribution": 25674, "epmd": 24370}


@dataclass(frozen=True)
class Layout:
    """The paths below one data directory."""

    root: Path

    @property
    def state_file(self) -> Path:
        """What is remembered of the stack: see `state`."""
        return self.root / "state.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor for as long as it lives; holds its pid."""
        return self.root / "lock"

    @property
    def origin_file(self) -> Path:
        """Where this directory lay when its stack was made: see `origin`."""
        return self.root / "origin"

    @property
    def logs(self) -> Path:
        """One file for each program."""
        return self.root / "logs"

    @property
    def supervisor_log(self) -> Path:
        """What a supervisor in the background has to say."""
        return self.root / "supervisor.log"

    @property
    def mongodb(self) -> Path:
        """MongoDB's data."""
        return self.root / "mongodb"

    @property
    def credentials_key(self) -> Path:
        """The key to the credentials of sold servers, where `up` was given none."""
        return self.root / "credentials.key"

    @property
    def rabbitmq(self) -> Path:
        """RabbitMQ's data, configuration, cookie and own logs."""
        return self.root / "rabbitmq"


def choose_data_directory(
    named: Path | None, environment: Mapping[str, str] = os.environ, *, last_used: bool = False
) -> Path:
    """Return the directory that was named, else ORDERSAGA_DATA_DIR, else the default in the current directory.

    With `last_used`, for commands that look for a stack, the one that `up` used last comes before the default.
    Raises DataDirectoryError for a path that cannot be followed.
    """
    chosen = named or environment.get(DATA_DIRECTORY_VARIABLE) or (_last_used(environment) if last_used else None)
    directory = Path(chosen or DEFAULT_DATA_DIRECTORY)
    try:
        # The real path: processes are marked with it, and a stack is the same one by whatever link it is named.
        return directory.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a link to itself, a null byte
        raise DataDirectoryError(f"{directory} cannot be a data directory: {error}") from error


def remember_as_last_used(root: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Note, for this user, that this data directory was used last. Raises OSError when it cannot be noted."""
    note = _note(environment)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_private(note, os.fsencode(root) + b"\n")


def _last_used(environment: Mapping[str, str]) -> Path | None:
    """Return the directory used last; None when there is no note of it, or none that can be read."""
    try:
        text = os.fsdecode(_note(environment).read_bytes()).strip()
    except OSError:
        return None
    return Path(text) if Path(text).is_absolute() and "\0" not in text else None


def _note(environment: Mapping[str, str]) -> Path:
    state_home = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "ordersaga" / "last-data-directory"
