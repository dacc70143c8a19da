"""The API as samples and documents: messages, OpenAPI, AsyncAPI and metrics. A change of any of them is a visible act.

`make api-diff` compares the code with a commit, `make api-samples` writes the files of an intended change: the metrics
into `tests/samples`, the documents, which are published, into `docs/api`. `messages.json` is written by hand;
`tests/unit/test_contracts.py` checks every message against it.
"""

import argparse
import asyncio
import difflib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.metrics import Histogram, MetricWrapperBase
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from inventory_service import __main__ as inventory
from inventory_service.settings import InventorySettings
from notification_service import __main__ as notification
from notification_service.settings import NotificationSettings
from operations import __main__ as console
from operations.settings import OperationsSettings
from order_service import __main__ as order
from order_service.rpc import calls as _metrics_of_grpc  # noqa: F401
from order_service.settings import OrderSettings
from payment_service import __main__ as payment
from payment_service.settings import PaymentSettings
from provisioning_service import __main__ as provisioning
from provisioning_service.settings import ProvisioningSettings
from provisioning_service.simulator.app import create_simulator_app
from provisioning_service.simulator.settings import SimulatorSettings
from provisioning_service.simulator.state import SimulatorState
from shared.access.authenticator import Authenticator
from shared.asyncapi import asyncapi
from shared.bus.memory import MemoryBroker, MemoryBus
from shared.bus.publisher import Publisher
from shared.failpoints import nothing_fails
from shared.http import add_routes, create_app
from shared.observability import configure_logging
from shared.pausing.api import create_pause_routes
from shared.pausing.records import PauseRecords
from shared.service import Connections, Parts
from shared.services import CONSOLE, INVENTORY, NOTIFICATION, ORDER, PAYMENT, PROVISIONING, Service

ROOT = Path(__file__).parents[2]
MESSAGES = "tests/samples/messages.json"
METRICS = "tests/samples/metrics.txt"
DOCUMENTS = "docs/api"
"""The folder of the published documents, whose folder `released` has those of the last release."""
_FOLDERS = ("tests/samples", DOCUMENTS)
_SUFFIXES = {".json", ".txt"}
TEXTS = {"title", "summary", "description"}
"""Keys of an OpenAPI document whose strings are for people."""

Samples = Mapping[str, str]
"""The content of each file, by its path."""


class NoSamplesError(Exception):
    """The commit has no samples to compare with."""


def current_samples() -> Samples:
    """Derive the samples from the code; those of the messages are their own source."""
    documents = {document_path(app.title): _as_json(app.openapi()) for app in applications()}
    events = {document_path("asyncapi"): _as_json(asyncapi())}
    return {MESSAGES: (ROOT / MESSAGES).read_text(), METRICS: _metrics(), **documents, **events}


def document_path(name: str) -> str:
    """Return the path of a published document: that of a process, or `asyncapi`."""
    return f"{DOCUMENTS}/{name}.json"


def stored_samples() -> Samples:
    """Read the samples of the work tree."""
    paths = (path for folder in _FOLDERS for path in (ROOT / folder).iterdir() if path.suffix in _SUFFIXES)
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def committed_samples(ref: str) -> Samples:
    """Read the samples of a commit. Raises NoSamplesError if it has none."""
    names = _git("ls-tree", "--name-only", ref, *(f"{folder}/" for folder in _FOLDERS)).splitlines()
    samples = {name: _git("show", f"{ref}:{name}") for name in names if Path(name).suffix in _SUFFIXES}
    if METRICS not in samples:
        raise NoSamplesError(f"{ref} is older than the samples of the API")
    return samples


def differences(before: Samples, after: Samples) -> list[str]:
    """Return a unified diff for every file that differs, below a line that names the readers it affects."""
    return [
        f"{name}: {_kind(name, before.get(name), after.get(name))}\n{_diff(name, before, after)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def applications() -> Iterator[FastAPI]:
    """Wire every process up as it wires itself up, without connecting to anything."""
    for service in ASSEMBLIES:
        yield wired(service)
    yield create_simulator_app(SimulatorSettings(), SimulatorState(), stopping=asyncio.Event())


ASSEMBLIES: dict[Service, Callable[[Connections], Parts]] = {
    ORDER: lambda connections: order.assemble(OrderSettings(), connections),
    INVENTORY: lambda connections: inventory.assemble(InventorySettings(), connections),
    PAYMENT: lambda connections: payment.assemble(PaymentSettings(), connections),
    PROVISIONING: lambda connections: provisioning.assemble(ProvisioningSettings(), connections),
    NOTIFICATION: lambda connections: notification.assemble(NotificationSettings(), connections),
    CONSOLE: lambda connections: console.assemble(OperationsSettings(), connections),
}


def wired(
    service: Service, database: AsyncDatabase[Any] | None = None, authenticator: Authenticator | None = None
) -> FastAPI:
    """Wire a service up as its process does, over a database, or without connecting to one."""
    if database is None:
        database = AsyncMongoClient[dict[str, Any]](connect=False)[service.database]
    parts = ASSEMBLIES[service](Connections(database, Publisher(MemoryBus(MemoryBroker())), nothing_fails))
    app = create_app(
        service.name,
        service.description,
        _nothing_is_down,
        authenticator=authenticator or Authenticator(None),
        pages=parts.pages,
        people=parts.people,
    )
    add_routes(app.router, parts.router)
    if service.can_be_paused:
        add_routes(app.router, create_pause_routes(service, PauseRecords(database)))
    return app


async def _nothing_is_down() -> dict[str, str]:
    return {}


def _metrics() -> str:
    """Name, type, labels and buckets of every metric, a line each.

    Those of stamina are left out: a test of the client's package, which no program uses, may have registered them.
    """
    wrappers = [collector for collector in REGISTRY._collector_to_names if isinstance(collector, MetricWrapperBase)]
    ours = (wrapper for wrapper in wrappers if not wrapper._name.startswith("stamina_"))
    return "".join(sorted(f"{_metric(wrapper)}\n" for wrapper in ours))


def _metric(wrapper: MetricWrapperBase) -> str:
    name = wrapper._name + ("_total" if wrapper._type == "counter" else "")
    bounds = wrapper._kwargs["buckets"] if isinstance(wrapper, Histogram) else ()
    buckets = "".join(f" {bound:g}" for bound in bounds if bound != math.inf)
    return f"{name} {wrapper._type} {{{', '.join(wrapper._labelnames)}}}{buckets}"


def _as_json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _kind(name: str, before: str | None, after: str | None) -> str:
    """Say whether a program could notice the change, or only a reader."""
    if before is None or after is None:
        return "new" if before is None else "gone"
    if name.startswith(DOCUMENTS) and _without_texts(json.loads(before)) == _without_texts(json.loads(after)):
        return "changed, but only what people read of it"
    return "changed"


def _without_texts(part: Any) -> Any:
    if isinstance(part, dict):
        return {
            key: _without_texts(value) for key, value in part.items() if not (key in TEXTS and isinstance(value, str))
        }
    return [_without_texts(element) for element in part] if isinstance(part, list) else part


def _diff(name: str, before: Samples, after: Samples) -> str:
    one, other = (samples.get(name, "").splitlines(keepends=True) for samples in (before, after))
    return "".join(difflib.unified_diff(one, other, f"before/{name}", f"after/{name}"))


def _git(*arguments: str) -> str:
    run = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise NoSamplesError(run.stderr.strip())
    return run.stdout


def _write(samples: Samples) -> None:
    for name, content in samples.items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    for name in stored_samples().keys() - samples.keys():
        (ROOT / name).unlink()


def main() -> None:
    """Print the differences from a commit's samples (exit status 1 if there are any), or write the samples."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("ref", nargs="?", default="HEAD", help="the commit to compare with (HEAD)")
    parser.add_argument("--write", action="store_true", help="write the samples of the code instead")
    arguments = parser.parse_args()
    configure_logging("api-samples", "ERROR", "console")
    samples = current_samples()
    if arguments.write:
        _write(samples)
        return
    try:
        found = differences(committed_samples(arguments.ref), samples)
    except NoSamplesError as error:
        sys.exit(str(error))
    sys.stdout.write("\n".join(found) or f"The API is what it was at {arguments.ref}.\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
