"""The stack of docker-compose.yml with the simulator, gRPC and overlays, named for the tests, on free ports."""

import asyncio
import contextlib
import copy
import fcntl
import json
import os
import shlex
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography.fernet import Fernet
from grpc import aio

from operations.stack.broker_users import BrokerUsers
from operations.stack.database_users import DatabaseUsers
from operations.stack.ports import PortClaims
from order_service.rpc.generated import orders_pb2 as pb
from order_service.rpc.generated.orders_pb2_grpc import OrderServiceStub
from shared.broker_rights import VIRTUAL_HOST
from shared.services import PROCESSES
from tests.support.access import bearer
from tests.support.eventually import NotWithinError, eventually
from tests.support.grpc_servers import metadata, new_order

ROOT = Path(__file__).parents[2]
PROJECT = "ordersaga-tests"
IMAGE = "ordersaga:tests"
# The images to test with, as docker-compose.yml names them, and the base of ours; unset: what the files say.
SERVER_IMAGES = ("ORDERSAGA_MONGO_IMAGE", "ORDERSAGA_RABBITMQ_IMAGE")
BASE_IMAGE = "ORDERSAGA_TEST_BASE_IMAGE"
GRPC_OVERLAY = "deploy/grpc/docker-compose.grpc.yml"
TLS_OVERLAY = "deploy/tls/docker-compose.tls.yml"
CLUSTER_OVERLAY = "docker-compose.cluster.yml"
SCALE_OVERLAY = "deploy/scale/docker-compose.scale.yml"
GRPC = "grpc"
# Service to the variable of docker-compose.yml that moves its port.
PORT_VARIABLES = {
    **{name: f"{name.upper()}_PORT" for name in PROCESSES},
    GRPC: "ORDER_GRPC_PORT",
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

    def __init__(
        self,
        command: list[str],
        ports: Mapping[str, int],
        certificates: Path | None = None,
        overlays: Sequence[str] = (),
        variables: Mapping[str, str] = {},
        port_variables: Mapping[str, str] = PORT_VARIABLES,
    ) -> None:
        """The stack has the `overlays`, and with `certificates`, the directory of them, the one for TLS.

        `port_variables` move the ports of services, and `variables` are set as they are.
        """
        self._compose = [*command, "--project-name", PROJECT]
        self._command = self._with_files(*overlays, *((TLS_OVERLAY,) if certificates else ()))
        self._authorities = (certificates / "ca.pem").read_bytes() if certificates else None
        self._verify = ssl.create_default_context(cafile=certificates / "ca.pem") if certificates else True
        self._scheme = "https" if certificates else "http"
        self._ports = ports
        self._secrets: dict[str, str] = {}
        # What else is set where the tests run is not for the stack.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ORDERSAGA_") or name in SERVER_IMAGES
        }
        chosen = {port_variables[service]: str(port) for service, port in ports.items()}
        key = Fernet.generate_key().decode()
        provider = {**WITH_SIMULATOR, "ORDERSAGA_CREDENTIALS_KEY": key}
        self._environment = {**inherited, **chosen, **provider, "ORDERSAGA_IMAGE": IMAGE, **variables}
        if certificates:
            self._environment["ORDERSAGA_CERTIFICATES"] = str(certificates)

    def _with_files(self, *overlays: str) -> list[str]:
        files = ("docker-compose.yml", GRPC_OVERLAY, *overlays)
        return [*self._compose, *(word for file in files for word in ("--file", str(ROOT / file)))]

    def without_overlays(self) -> "ComposeStack":
        """The same project without the overlays, as it was before they were added."""
        plain = copy.copy(self)
        plain._command = self._with_files()
        return plain

    def url(self, service: str) -> str:
        """The URL of a service on this machine."""
        scheme = "http" if service == "simulator" else self._scheme
        return f"{scheme}://127.0.0.1:{self._ports[service]}"

    def admin_key(self) -> str:
        """A new key, as an operator creates it."""
        return self.command("keys", "create", "--role", "admin", "--owner", "tests").strip()

    def client(self, key: str | None = None, timeout: float = 30) -> httpx.AsyncClient:
        """A client that trusts the certificates of the stack, with an API key."""
        return httpx.AsyncClient(timeout=timeout, headers=bearer(key) if key else {}, verify=self._verify)

    def grpc_channel(self) -> aio.Channel:
        """A channel to the order service that trusts the certificates of the stack."""
        target = f"127.0.0.1:{self._ports[GRPC]}"
        if self._authorities is None:
            return aio.insecure_channel(target)
        return aio.secure_channel(target, grpc.ssl_channel_credentials(self._authorities))

    def amqp_url(self, user: str) -> str:
        """The URL of a user of the broker, at the address of its container, which this machine reaches."""
        return BrokerUsers(VIRTUAL_HOST, {user: self.secret(f"rabbitmq-{user}")}).url(
            user, f"{self.address('rabbitmq')}:5672"
        )

    def mongodb_url(self, user: str) -> str:
        """The URL of a user of MongoDB, at the address of its container."""
        users = DatabaseUsers("ordersaga", {user: self.secret(f"mongodb-{user}")})
        return users.url(user, f"mongodb://{self.address('mongo')}:27017/?directConnection=true")

    def secret(self, name: str) -> str:
        """The content of a file of the volume `secrets`."""
        if not self._secrets:
            script = "cd /var/lib/ordersaga/secrets; for file in *-*; do echo $file $(cat $file); done"
            listed = self.run("run", "--rm", "--no-deps", "-T", "database", "sh", "-c", script)
            self._secrets = dict(line.split(" ", 1) for line in listed.splitlines())
        return self._secrets[name]

    def address(self, service: str) -> str:
        """The address of a container that is on one network, which this machine reaches."""
        [network] = self.inspect(service)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def command(self, *words: str) -> str:
        """Run `ordersaga` as an operator does; return what it prints."""
        return self.run("run", "--rm", "--no-deps", "-T", "commands", "ordersaga", *words)

    def doctor(self) -> dict[str, Any]:
        """What `ordersaga doctor` finds, whatever it is."""
        words = ("run", "--rm", "--no-deps", "-T", "commands", "ordersaga", "doctor", "--json")
        report: dict[str, Any] = json.loads(self.run(*words, check=False))
        return report

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

    def build(self) -> None:
        """Build the image, on the base that ORDERSAGA_TEST_BASE_IMAGE names, else on that of the Dockerfile."""
        base = os.environ.get(BASE_IMAGE)
        self.run("build", *(["--build-arg", f"BASE={base}"] if base else []), timeout=1200)

    def up(self) -> None:
        """Start everything; returns before the services are ready."""
        self.run("up", "--detach", timeout=1200)

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
                answer = httpx.get(f"{self.url(service)}/readyz", timeout=5, verify=self._verify)
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
        [document] = self.inspect_all(service)
        return document

    def inspect_all(self, service: str) -> list[dict[str, Any]]:
        """The engine's data about each container of a service, also of those that have ended."""
        containers = self.run("ps", "--all", "--quiet", service).split()
        described = subprocess.run(["docker", "inspect", *containers], capture_output=True, text=True, check=True)
        documents: list[dict[str, Any]] = json.loads(described.stdout)
        return documents

    def crash(self, container: str) -> None:
        """Kill a container's first process with SIGKILL, and so all others, as if it had crashed.

        The engine takes a `docker kill` for the operator's wish and does not restart what it hit.
        """
        described = subprocess.run(
            ["docker", "inspect", "--format", "{{.State.Pid}}", container], capture_output=True, text=True, check=True
        )
        # From outside: within a container, the first process is safe from signals.
        options = ["--pid", "host", "--network", "none", "--user", "0:0", "--entrypoint", "sh"]
        kill = f"kill -KILL {described.stdout.strip()}"
        subprocess.run(
            ["docker", "run", "--rm", *options, IMAGE, "-c", kill], capture_output=True, check=True, timeout=60
        )


@contextlib.contextmanager
def compose_stack(
    command: list[str],
    certificates: Path | None = None,
    overlays: Sequence[str] = (),
    variables: Mapping[str, str] = {},
    port_variables: Mapping[str, str] = PORT_VARIABLES,
) -> Iterator[ComposeStack]:
    """Build the image and start the stack; it goes with its volumes when the context ends.

    What a killed run left behind is removed first. Raises ComposeError.
    """
    with _alone(), PortClaims() as claims:
        ports = {service: claims.claim_free() for service in port_variables}
        stack = ComposeStack(command, ports, certificates, overlays, variables, port_variables)
        stack.down("--volumes")
        try:
            stack.build()
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


async def all_ready(stack: ComposeStack, within: float) -> None:
    """Wait until all services are ready; fail with what is not, and the logs."""
    last: list[str] = ["nothing was asked"]

    async def ready() -> bool:
        last[:] = await asyncio.to_thread(stack.not_ready)
        return not last

    try:
        await eventually(ready, within=within, message="the services to be ready")
    except NotWithinError:
        pytest.fail(f"not ready: {last}\n{stack.logs()}")


async def place_over_grpc(stack: ComposeStack, key: str, product: str) -> str:
    """Order one unit of the product over gRPC and watch the order to its end; return the name of its status."""
    async with stack.grpc_channel() as channel:
        orders = OrderServiceStub(channel)  # type: ignore[no-untyped-call]
        items = [{"product_id": product, "quantity": 1, "price": "10"}]
        request = new_order(items=items, payment={"token": "tok_ok"})
        placed = await orders.CreateOrder(request, metadata=metadata(key), wait_for_ready=True, timeout=60)
        asked = {"metadata": metadata(key), "timeout": 60}
        async for _event in orders.WatchOrder(pb.WatchOrderRequest(order_id=placed.order_id), **asked):
            pass
        settled = await orders.GetOrder(pb.GetOrderRequest(order_id=placed.order_id), **asked)
    return str(pb.OrderStatus.Name(settled.status))
