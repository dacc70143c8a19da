"""RabbitMQ as a private node with its own name, cookie, ports, data and logs, separate from the system service.

Debian's `rabbitmq-server` is a wrapper that switches to the user `rabbitmq` if run by root and refuses other users; the
script behind it runs as the current user. No setting of the system's node applies: environment variables for RabbitMQ
and Erlang are not passed on, and the files below /etc/rabbitmq are not read.

The node of a stack imports its users and their rights each time it boots (see `broker_users`), and has no guest. Once
it answers, the topology is declared on it, before a service starts.

Erlang nodes find each other through a name server, epmd. A node would start one that keeps running after the node has
ended. So epmd runs as a separate program on its own port and is started before the node.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from operations.errors import UnreachableError
from operations.reading.reachability import amqp_missing
from operations.stack.broker_topology import apply_topology, retire_surplus
from operations.stack.broker_users import BrokerUsers
from operations.stack.environment import server_environment, topology_options
from operations.stack.files import write_private
from operations.stack.program import Command, ServerMissingError
from shared.broker_rights import DEPLOYER
from shared.bus.declaring import EventStreamDiffersError
from shared.errors import StartError
from shared.topology import MAX_MESSAGE_BYTES, PARTITIONS_PLUGIN

DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/lib")
# Directories of administration tools, often missing in the PATH of an ordinary user.
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
PROBE_TIMEOUT_SECONDS = 2.0
COOKIE_BYTES = 32


@dataclass(frozen=True)
class RabbitMQInstallation:
    """The directory with RabbitMQ's scripts, and Erlang's name server."""

    scripts: Path
    epmd: Path

    @property
    def version(self) -> str | None:
        """The version according to the names of the installation's directories."""
        names = [self.scripts.parent.name, *(path.name for path in self.scripts.parent.glob("plugins/rabbit-*"))]
        versions = (re.search(r"(?:rabbitmq_server|rabbit)-(\d[\w.]*\d)", name) for name in names)
        return next((version.group(1) for version in versions if version), None)

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins to enable: that of partitioned inboxes, unless a distribution leaves it out."""
        ships_it = any(self.scripts.parent.glob(f"plugins/{PARTITIONS_PLUGIN}-*"))
        return (PARTITIONS_PLUGIN,) if ships_it else ()


def find_rabbitmq(environment: Mapping[str, str] = os.environ) -> RabbitMQInstallation:
    """Find RabbitMQ: ORDERSAGA_RABBITMQ_SERVER, else on the PATH, else where Debian installs it.

    Raises ServerMissingError.
    """
    path = os.pathsep.join([environment.get("PATH", os.defpath), *SYSTEM_DIRECTORIES])
    scripts = _find_scripts(environment.get("ORDERSAGA_RABBITMQ_SERVER"), path)
    if scripts is None:
        raise ServerMissingError(
            "rabbitmq-server was not found: apt-get install rabbitmq-server (make setup does), "
            "or name the program in ORDERSAGA_RABBITMQ_SERVER"
        )
    epmd = _find_epmd(path)
    if epmd is None:
        raise ServerMissingError("Erlang's epmd was not found: apt-get install erlang-base, or put it on the PATH")
    return RabbitMQInstallation(scripts, epmd)


def _find_scripts(named: str | None, path: str) -> Path | None:
    program = shutil.which(named or "rabbitmq-server", path=path)
    candidates = [Path(program).resolve().parent / "rabbitmq-server"] if program else []
    if named is None:
        candidates += sorted(DEBIAN_SCRIPTS.glob("rabbitmq_server-*/sbin/rabbitmq-server"), reverse=True)
    real = (candidate.resolve().parent for candidate in candidates if candidate.exists())
    return next((directory for directory in real if (directory / "rabbitmq-env").exists()), None)


def _find_epmd(path: str) -> Path | None:
    if on_path := shutil.which("epmd", path=path):
        return Path(on_path)
    erl = shutil.which("erl", path=path)
    beside = sorted(Path(erl).resolve().parents[1].glob("**/bin/epmd")) if erl else []
    return beside[-1] if beside else None


class Epmd:
    """Erlang's name server, for one node."""

    name = "epmd"
    url = None
    grace_seconds = 2.0

    def __init__(
        self, installation: RabbitMQInstallation, port: int, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._program = installation.epmd
        self._port = port
        self._environment = environment

    def prepare(self) -> Command:
        """Return the command; without -daemon the program remains a child process."""
        return Command(
            (str(self._program), "-address", "127.0.0.1", "-port", str(self._port)),
            server_environment(self._environment),
        )

    async def probe(self) -> str | None:
        """Return None if it accepts connections."""
        return await _refusal("127.0.0.1", self._port)


class RabbitMQ:
    """A private RabbitMQ node with its data in a directory. It needs a running `Epmd`."""

    name: str = "rabbitmq"
    grace_seconds = 30.0

    def __init__(
        self,
        installation: RabbitMQInstallation,
        directory: Path,
        node: str,
        ports: Mapping[str, int],
        environment: Mapping[str, str] = os.environ,
        users: BrokerUsers | None = None,
    ) -> None:
        """Use the ports named `amqp`, `distribution` and `epmd`; the node's name has no host part.

        Without `users`, the node has RabbitMQ's own guest and no topology, as tests want it.
        """
        self._installation = installation
        self._directory = directory
        self._home = directory
        self.node = f"{node}@localhost"
        self._ports = ports
        self._environment = environment
        self._users = users
        self._ready_for_services = False

    @property
    def nodes(self) -> "list[RabbitMQ]":
        """The nodes of this broker, which is a single one."""
        return [self]

    @property
    def has_data(self) -> bool:
        """Whether it has run here before."""
        return any(self._directory.glob("data/*@*"))

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._ports['amqp']}"

    @property
    def url(self) -> str:
        """The URL for commands: of the deployer, or of guest on a node without users."""
        return self.url_of(DEPLOYER) if self._users else self._guest_url

    @property
    def _guest_url(self) -> str:
        """The URL of RabbitMQ's own user, who is only accepted from this machine."""
        return f"amqp://guest:guest@{self._address}/"

    def url_of(self, user: str) -> str:
        """Return the URL for one of the node's users."""
        assert self._users is not None  # noqa: S101 - only asked of a node with users
        return self._users.url(user, self._address)

    def prepare(self) -> Command:
        """Write the node's configuration and return the command."""
        (self._directory / "log").mkdir(parents=True, exist_ok=True)
        self._ensure_cookie()
        self._ready_for_services = False
        (self._directory / "plugins").write_text(f"[{','.join(self._installation.plugins)}].\n")
        (self._directory / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in self.configuration()))
        advanced = advanced_config(self.advanced_configuration())
        (self._directory / "advanced.config").write_text(f"%% -*- coding: utf-8 -*-\n{advanced}")
        self._write_definitions()
        return Command((str(self._installation.scripts / "rabbitmq-server"),), self.node_environment())

    def configuration(self) -> list[str]:
        """Return the lines of rabbitmq.conf."""
        return [
            f"listeners.tcp.1 = {self._address}",
            # The log of the quorum queues is allocated at its full size; the default is 512 MB.
            "raft.wal_max_size_bytes = 67108864",
            f"max_message_size = {MAX_MESSAGE_BYTES}",
        ]

    def advanced_configuration(self) -> list[str]:
        """Return the Erlang terms of advanced.config, one for each application."""
        if self._users is None:
            return []
        # Not in rabbitmq.conf, where a # in the path would begin a comment.
        path = str(self._definitions).replace("\\", "\\\\").replace('"', '\\"')
        return [f'{{rabbit, [{{load_definitions, "{path}"}}]}}']

    @property
    def _definitions(self) -> Path:
        return self._directory / "definitions.json"

    def _write_definitions(self) -> None:
        """Write the users, which the node imports when it boots; it then makes no guest."""
        if self._users is not None:
            write_private(self._definitions, self._users.definitions().encode())

    def _ensure_cookie(self) -> None:
        """Write a cookie for the node unless it has one of this length: Erlang's own has only 36 random bits.

        Anyone who knows the cookie can run code in the node. The stored data does not depend on it.
        """
        cookie = self._home / ".erlang.cookie"
        if not cookie.exists() or len(cookie.read_bytes().strip()) != 2 * COOKIE_BYTES:
            write_private(cookie, secrets.token_hex(COOKIE_BYTES).encode(), 0o400)

    def node_environment(self) -> dict[str, str]:
        """Return the environment of the node and of RabbitMQ's tools for it."""
        directory = self._directory
        return {
            **server_environment(self._environment),
            "HOME": str(self._home),  # Erlang looks there for the cookie, which the tools need
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._ports["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            # Makes the script become the node instead of waiting for it, so the pid is that of the node.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    async def probe(self) -> str | None:
        """Return None if it answers AMQP and has the topology."""
        reason = await self.unreachable()
        if reason is None and self._users is not None and not self._ready_for_services:
            reason = await self._prepare_for_services()
        return reason

    async def unreachable(self) -> str | None:
        """Return None if it answers AMQP, else the reason. It listens only after it has started completely."""
        return await _refusal("127.0.0.1", self._ports["amqp"]) or await amqp_missing(self.url)

    async def _prepare_for_services(self) -> str | None:
        """Prepare the broker; return the reason if that fails."""
        try:
            await self.prepare_broker()
        except (OSError, subprocess.SubprocessError) as error:
            return f"the broker cannot be prepared: {error}"
        except (StartError, UnreachableError) as error:
            return f"the topology cannot be declared: {error}"
        self._ready_for_services = True
        return None

    async def prepare_broker(self) -> None:
        """Delete the guest of an earlier release, and declare the topology.

        `ordersaga doctor` names surplus partitions in which messages wait.

        Raises OSError or SubprocessError if a tool of RabbitMQ fails, StartError or UnreachableError if the topology
        cannot be declared.
        """
        if await amqp_missing(self._guest_url) is None:
            await asyncio.to_thread(self.control, "delete_user", "guest")
        # A stream that keeps events for another time is no reason not to start: `ordersaga doctor` names it.
        options = topology_options(self._environment)
        with contextlib.suppress(EventStreamDiffersError):
            await apply_topology(self.url, options)
        await retire_surplus(self.url, options.partitions)

    def control(self, *arguments: str, tool: str = "rabbitmqctl") -> str:
        """Run rabbitmqctl, or another tool of RabbitMQ, on the node and return its output.

        Raises subprocess.CalledProcessError, with the output, if it fails.
        """
        return subprocess.run(  # noqa: S603 - the node's own tool
            [self._installation.scripts / tool, *arguments],
            env=self.node_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout


def advanced_config(terms: Sequence[str]) -> str:
    """Return the contents of advanced.config with these Erlang terms."""
    listed = ",\n ".join(terms)
    return f"[{listed}].\n"


async def _refusal(host: str, port: int) -> str | None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return f"nothing listens on {host}:{port} yet"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
