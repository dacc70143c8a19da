"""The stack of docker-compose.yml with the simulator, named for the tests, on free ports of 127.0.0.1."""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet

from operations.stack.ports import PortClaims
from shared.services import PROCESSES

ROOT = Path(__file__).parents[2]
PROJECT = "ordersaga-tests"
IMAGE = "ordersaga:tests"
# Service to the variable of docker-compose.yml that moves its port.
PORT_VARIABLES = {
    **{name: f"{name.upper()}_PORT" for name in PROCESSES},
    "mongo": "MONGODB_PORT",
    "rabbitmq": "AMQP_PORT",
    "management": "MANAGEMENT_PORT",
}
SERVICES = tuple(PROCESSES)
WITH_SIMULATOR = {
    "COMPOSE_PROFILES": "simulator",
    "ORDERSAGA_SMARTVPS_URL": "http://simulator:3013",
    "ORDERSAGA_SMARTVPS_USERNAME": "tests",
    "ORDERSAGA_SMARTVPS_PASSWORD": "tests",
}


class ComposeError(AssertionError):
    """A command of Compose failed; the message ends with what it said."""


def compose_command() -> list[str] | None:
    """The Compose that ORDERSAGA_TEST_COMPOSE names, else v2 as the engine's plugin, else docker-compose, else None."""
    if named := os.environ.get("ORDERSAGA_TEST_COMPOSE"):
        return shlex.split(named)
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else None


class ComposeStack:
    """Runs Compose commands on the tests' project and knows where its services listen."""

    def __init__(self, command: list[str], ports: Mapping[str, int]) -> None:
        self._command = [*command, "--project-name", PROJECT, "--file", str(ROOT / "docker-compose.yml")]
        self._ports = ports
        # What is set where the tests run is not for the stack.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        chosen = {PORT_VARIABLES[service]: str(port) for service, port in ports.items()}
        key = Fernet.generate_key().decode()
        provider = {**WITH_SIMULATOR, "ORDERSAGA_CREDENTIALS_KEY": key}
        self._environment = {**inherited, **chosen, **provider, "ORDERSAGA_IMAGE": IMAGE}

    def url(self, service: str) -> str:
        """The URL of a service on this machine."""
        return f"http://127.0.0.1:{self._ports[service]}"

    @property
    def amqp_url(self) -> str:
        """The URL of the broker, with its default user."""
        return f"amqp://ordersaga:ordersaga@127.0.0.1:{self._ports['rabbitmq']}/"

    def run(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        """Run one Compose command and return its standard output.

        Raises ComposeError when it fails, unless `check` is false.
        """
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr)[-4000:]
            raise ComposeError(f"compose {' '.join(arguments)} exited with {done.returncode}:\n{said}")
        return done.stdout

    def up(self) -> None:
        """Start everything; returns before the services are ready."""
        self.run("up", "--detach")

    def scale(self, service: str, containers: int) -> None:
        """Run so many containers of a service; several are published at one port of a range each."""
        port = self._ports[service]
        published = str(port) if containers == 1 else f"{port}-{port + 20}"
        self._environment[PORT_VARIABLES[service]] = published
        self.run("up", "--detach", "--scale", f"{service}={containers}")

    def down(self, *options: str) -> None:
        """Stop and remove everything; with `--volumes` the data as well."""
        self.run("down", "--remove-orphans", *options)

    def not_ready(self) -> list[str]:
        """Each service that is not ready, with what it answers."""
        problems = []
        for service in SERVICES:
            try:
                answer = httpx.get(f"{self.url(service)}/readyz", timeout=5)
            except httpx.HTTPError as error:
                problems.append(f"{service}: {error!r}")
            else:
                if answer.status_code != httpx.codes.OK:
                    problems.append(f"{service}: {answer.status_code} {answer.text}")
        return problems

    def logs(self, lines: int = 40) -> str:
        """The last lines of every container's log."""
        return self.run("logs", "--no-color", f"--tail={lines}", check=False)

    def inspect(self, service: str) -> dict[str, Any]:
        """The engine's data about a service's container."""
        container = self.run("ps", "--all", "--quiet", service).strip()
        described = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True)
        document: dict[str, Any] = json.loads(described.stdout)[0]
        return document

    def crash(self, container: str) -> None:
        """Kill the processes in a container with SIGKILL from inside, so that the restart policy acts.

        The engine takes a `docker kill` for the operator's wish and does not restart what it hit.
        """
        # All but the container's init, which a signal from inside cannot kill and which ends with the service.
        subprocess.run(["docker", "exec", container, "sh", "-c", "kill -KILL -1"], capture_output=True, timeout=60)


@contextlib.contextmanager
def compose_stack(command: list[str]) -> Iterator[ComposeStack]:
    """Build the image and start the stack; it goes with its volumes when the context ends.

    What a killed run left behind is removed first. Raises ComposeError.
    """
    with _alone(), PortClaims() as claims:
        stack = ComposeStack(command, {service: claims.claim_free() for service in PORT_VARIABLES})
        stack.down("--volumes")
        try:
            stack.run("build", timeout=1200)
            stack.up()
            yield stack
        finally:
            stack.down("--volumes")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the project's name: a second run on this machine waits for the first."""
    with open(Path(tempfile.gettempdir()) / f"{PROJECT}-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
