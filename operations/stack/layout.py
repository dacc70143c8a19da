"""The paths of a data directory, the choice of that directory, and the default ports of the servers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from operations.errors import DataDirectoryError
from operations.stack.files import write_private

DATA_DIRECTORY_VARIABLE = "ORDERSAGA_DATA_DIR"
MONGODB_URL_VARIABLE = "ORDERSAGA_MONGODB_URL"
AMQP_URL_VARIABLE = "ORDERSAGA_AMQP_URL"
TOPOLOGY_VARIABLE = "ORDERSAGA_TOPOLOGY"
EVENTS_RETENTION_VARIABLE = "ORDERSAGA_EVENTS_RETENTION"
PARTITIONS_VARIABLE = "ORDERSAGA_PARTITIONS"
WEBHOOKS_VARIABLE = "ORDERSAGA_WEBHOOKS"
SMARTVPS_URL_VARIABLE = "ORDERSAGA_SMARTVPS_URL"
DATABASE_PREFIX_VARIABLE = "ORDERSAGA_DATABASE_PREFIX"
AUTH_VARIABLE = "ORDERSAGA_AUTH"
KEYS_FILE_VARIABLE = "ORDERSAGA_KEYS_FILE"
GRPC_PORT_VARIABLE = "ORDERSAGA_GRPC_PORT"
REMOTE_URL_VARIABLE = "ORDERSAGA_URL"
"""The address of a console: commands act through its operations API alone."""
API_KEY_VARIABLE = "ORDERSAGA_API_KEY"
DEFAULT_DATA_DIRECTORY = ".ordersaga"
GRPC = "grpc"
"""The name of the port of gRPC among those of a stack."""

# Used unless taken or an offset is given. The ports of the services are in `services`.
SERVER_PORTS = {"mongodb": 27017, "amqp": 5672, "distribution": 25674, "epmd": 24370}

CLUSTER_SIZE = 3
"""The number of RabbitMQ nodes and of MongoDB members that `up --cluster` starts: the fewest that one may leave."""


def numbered(name: str, number: int) -> str:
    """Return the name of a server of a cluster, or of its port or directory.

    The first has the name of a single server, so that one can become the first of a cluster.
    """
    return name if number == 1 else f"{name}-{number}"


CLUSTER_PORTS = {
    numbered(name, number): SERVER_PORTS[name] + number - 1
    for number in range(1, CLUSTER_SIZE + 1)
    for name in ("mongodb", "amqp", "distribution")
} | {"epmd": SERVER_PORTS["epmd"]}
"""Those of a cluster; one name server is enough for all nodes."""


@dataclass(frozen=True)
class Layout:
    """The paths below one data directory."""

    root: Path

    @property
    def state_file(self) -> Path:
        """The state of the stack: see `state`."""
        return self.root / "state.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor while it runs; contains its pid."""
        return self.root / "lock"

    @property
    def location_file(self) -> Path:
        """The path under which the stack was created: see `relocation`."""
        return self.root / "origin"

    @property
    def logs(self) -> Path:
        """The directory of the logs, with one file per program."""
        return self.root / "logs"

    @property
    def supervisor_log(self) -> Path:
        """The log of a supervisor in the background."""
        return self.root / "supervisor.log"

    @property
    def mongodb(self) -> Path:
        """MongoDB's data."""
        return self.root / "mongodb"

    @property
    def credentials_key(self) -> Path:
        """The key that encrypts the credentials of sold servers, unless `up` was given one."""
        return self.root / "credentials.key"

    @property
    def keys(self) -> Path:
        """The API keys of callers, without their secrets: see `api_keys`."""
        return self.root / "keys.json"

    @property
    def secrets(self) -> Path:
        """The passwords of the stack and its own API keys: see `secret_files` and `api_keys`."""
        return self.root / "secrets"

    @property
    def webhook_key(self) -> Path:
        """The key that encrypts the secrets of webhooks, unless `up` was given one."""
        return self.secrets / "webhook-key"

    @property
    def rabbitmq(self) -> Path:
        """RabbitMQ's data, configuration, cookie and own logs."""
        return self.root / "rabbitmq"

    @property
    def servers(self) -> tuple[Path, ...]:
        """The directories of all servers, whether or not they exist."""
        numbers = range(1, CLUSTER_SIZE + 1)
        return tuple(
            numbered_directory(directory, number) for directory in (self.mongodb, self.rabbitmq) for number in numbers
        )

    @property
    def has_cluster(self) -> bool:
        """Whether a cluster was started here."""
        return any(numbered_directory(first, 2).exists() for first in (self.mongodb, self.rabbitmq))


def numbered_directory(first: Path, number: int) -> Path:
    """Return the directory of a server of a cluster, which lies beside that of the first."""
    return first.with_name(numbered(first.name, number))


def choose_data_directory(
    named: Path | None, environment: Mapping[str, str] = os.environ, *, last_used: bool = False
) -> Path:
    """Return the named directory, else ORDERSAGA_DATA_DIR, else the default in the current directory.

    With `last_used`, for commands that act on an existing stack, the directory that `up` used last precedes the
    default. Raises DataDirectoryError if the path cannot be resolved.
    """
    chosen = named or environment.get(DATA_DIRECTORY_VARIABLE) or (_last_used(environment) if last_used else None)
    directory = Path(chosen or DEFAULT_DATA_DIRECTORY)
    try:
        # The real path: processes are marked with it, so it must be the same for every link to the directory.
        return directory.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a link to itself, a null byte
        raise DataDirectoryError(f"{directory} cannot be a data directory: {error}") from error


def remember_as_last_used(root: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Remember this data directory as the one that this user used last. Raises OSError."""
    file = _last_used_file(environment)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, os.fsencode(root) + b"\n")


def _last_used(environment: Mapping[str, str]) -> Path | None:
    """Return the directory used last; None if it is not recorded or the record is damaged."""
    try:
        text = os.fsdecode(_last_used_file(environment).read_bytes()).strip()
    except OSError:
        return None
    return Path(text) if Path(text).is_absolute() and "\0" not in text else None


def _last_used_file(environment: Mapping[str, str]) -> Path:
    state_home = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "ordersaga" / "last-data-directory"


def database_prefix(environment: Mapping[str, str]) -> str:
    """Return the prefix of the databases that a stack with this environment uses."""
    return environment.get(DATABASE_PREFIX_VARIABLE) or "ordersaga"
