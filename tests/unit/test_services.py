"""The rows of the services agree with their packages, and with the files that cannot derive from them.

docker-compose.yml and Prometheus are compared in test_compose_file.py and test_alerts.py.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from operations.settings import OperationsSettings
from shared.services import CONSOLE, GRPC_PORT, PROCESSES, SERVICES, SIMULATOR, Service
from shared.topology import INBOXES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()


def row(variable: str) -> str:
    """The first row of docs/configuration.md about a variable."""
    found, *_ = re.findall(rf"^\| [^|]*`{variable}`.*$", CONFIGURATION, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_every_process_has_its_program_and_its_settings(process: Service) -> None:
    assert importlib.util.find_spec(f"{process.package}.__main__")
    module, _, name = process.settings.partition(":")
    assert "http_port" in getattr(importlib.import_module(module), name).model_fields


def test_no_two_processes_share_anything() -> None:
    for values in (
        [process.port for process in PROCESSES.values()],
        [process.package for process in PROCESSES.values()],
        [service.database for service in SERVICES.values()],
    ):
        assert len(values) == len(set(values))
    assert sorted(service.inbox for service in SERVICES.values()) == sorted(INBOXES)


def test_the_console_acts_on_every_other_service_at_its_default_port() -> None:
    others = {name: service.default_url for name, service in SERVICES.items() if name != CONSOLE.name}
    assert OperationsSettings().service_urls == others


def test_the_image_says_what_it_can_run_and_checks_its_health_at_the_default_ports() -> None:
    usage = (ROOT / "deploy/container/usage.txt").read_text()
    assert dict(re.findall(r"python -m ([\w.]+) .*port (\d+)$", usage, re.MULTILINE)) == {
        process.package: str(process.port) for process in PROCESSES.values()
    }
    healthcheck = (ROOT / "deploy/container/healthcheck.py").read_text()
    (ports,) = re.findall(r"^DEFAULT_PORTS = \((.*)\)$", healthcheck, re.MULTILINE)
    assert ports == ", ".join(str(process.port) for process in PROCESSES.values())


def test_the_page_of_the_settings_has_every_port_url_and_database() -> None:
    assert re.findall(r"(\d+) (\w+)", row("ORDERSAGA_HTTP_PORT")) == [
        (str(service.port), name) for name, service in SERVICES.items()
    ]
    assert re.findall(r"`<prefix>_(\w+)`", row("ORDERSAGA_DATABASE_PREFIX")) == [
        service.database for service in SERVICES.values()
    ]
    variables = [service.url_variable for name, service in SERVICES.items() if name != CONSOLE.name]
    assert re.findall(r"`(ORDERSAGA_\w+_URL)`", row("ORDERSAGA_ORDER_URL")) == variables
    assert f"(`python -m {SIMULATOR.package}`, port {SIMULATOR.port})" in CONFIGURATION


def test_the_first_page_says_where_each_process_answers() -> None:
    readme = (ROOT / "README.md").read_text()
    for process in PROCESSES.values():
        assert str(process.port) in readme, f"README does not mention port {process.port} of {process.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documents_address_no_port_that_nothing_listens_on(page: Path) -> None:
    ports = {int(port) for port in re.findall(r"(?:localhost|127\.0\.0\.1):(30\d\d)\b", page.read_text())}
    assert ports <= {process.port for process in PROCESSES.values()} | {GRPC_PORT}
