"""The services, and the simulator, as programs: how each is started and how to ask whether it is ready."""

import asyncio
import base64
import http.client
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from operations.stack.environment import for_process
from operations.stack.layout import SMARTVPS_URL_VARIABLE
from operations.stack.program import Command
from shared.urls import hide_credentials

PROBE_TIMEOUT_SECONDS = 3.0
# A service has 10 s to finish what it has in hand, and a little more to close.
GRACE_SECONDS = 12.0


@dataclass(frozen=True)
class ServiceKind:
    """What can be run: the package, the port it has by default, and its settings as `module:class`."""

    package: str
    port: int
    settings: str


CONSOLE = "console"
SERVICES = {
    "order": ServiceKind("order_service", 3008, "order_service.settings:OrderSettings"),
    "inventory": ServiceKind("inventory_service", 3009, "inventory_service.settings:InventorySettings"),
    "payment": ServiceKind("payment_service", 3010, "payment_service.settings:PaymentSettings"),
    "provisioning": ServiceKind("provisioning_service", 3011, "provisioning_service.settings:ProvisioningSettings"),
    CONSOLE: ServiceKind("operations", 3012, "operations.settings:OperationsSettings"),
}
SIMULATOR = "simulator"
PROCESSES = {
    **SERVICES,
    SIMULATOR: ServiceKind(
        "provisioning_service.simulator", 3013, "provisioning_service.simulator.settings:SimulatorSettings"
    ),
}
"""What `up` starts besides MongoDB and RabbitMQ. The simulator is no service of the stack: it stands for the provider
where none is given, and has no database."""


@dataclass(frozen=True)
class Service:
    """One of PROCESSES as it runs; of the environment it gets what it needs, and its port."""

    name: str
    port: int
    environment: Mapping[str, str]
    grace_seconds: float = GRACE_SECONDS

    @property
    def url(self) -> str:
        """Where it answers HTTP; from this machine when it listens on every address."""
        host = self.environment.get("ORDERSAGA_HTTP_HOST") or "127.0.0.1"
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"  # noqa: S104 - only compared

    def prepare(self) -> Command:
        """Return the command. -P: the current directory, whatever is in it, is not a place to import from."""
        kind = PROCESSES[self.name]
        environment = {
            **for_process(kind.settings, self.environment),
            "ORDERSAGA_HTTP_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": import_path(self.environment),
        }
        return Command((sys.executable, "-P", "-m", kind.package), environment)

    async def probe(self) -> str | None:
        """Return None when /readyz answers 200, else what it says is missing."""
        return await asyncio.to_thread(probe_readiness, self.url)


def probe_readiness(url: str) -> str | None:
    """Ask /readyz of a service; None when it is ready, else one line that says why not. Never raises."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {}
    if parts.username is not None:  # of a proxy in front of the service
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    connection = kind(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/readyz", headers=headers)
        answer = connection.getresponse()
        body = answer.read(4096)
    except (OSError, http.client.HTTPException) as error:
        return f"nothing answers on {hide_credentials(url)} yet ({type(error).__name__})"
    finally:
        connection.close()
    return None if answer.status == http.client.OK else f"/readyz answers {answer.status}: {_one_line(body)}"


def _one_line(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body))[:300]
    except ValueError:
        return body.decode(errors="replace").strip().replace("\n", " ")[:300]


def choose_services(only: str | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return those of PROCESSES that a comma-separated list names; all that are needed when there is no list at all.

    The simulator is not needed where the environment names a provider; a variable set to nothing names none.
    Raises ValueError, naming what is allowed, for an unknown name.
    """
    if only is None:
        return [name for name in PROCESSES if name != SIMULATOR or not environment.get(SMARTVPS_URL_VARIABLE)]
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(wanted - PROCESSES.keys()):
        raise ValueError(f"unknown service {', '.join(unknown)}; there are {', '.join(PROCESSES)}")
    return [name for name in PROCESSES if name in wanted]


def import_path(environment: Mapping[str, str]) -> str:
    """Return PYTHONPATH for a process that imports the project from where this one did, installed or not."""
    given = environment.get("PYTHONPATH")
    own = str(Path(__file__).parents[2])
    return os.pathsep.join([given, own]) if given else own
