"""deploy/scale against docker-compose.yml and the code: ports, names, confinement, and what haproxy says of it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.problems import UNAVAILABLE
from shared.services import PROCESSES, SIMULATOR
from tests.support.compose_files import compose_services

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "scale"
HAPROXY = DIRECTORY / "haproxy.cfg"
SERVICES = {name: process for name, process in PROCESSES.items() if process is not SIMULATOR}
STOP_SECONDS = 10
"""How long a process takes to finish what is in hand."""


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return compose_services("docker-compose.yml")


@pytest.fixture(scope="module")
def overlay() -> dict[str, Any]:
    return compose_services("deploy/scale/docker-compose.scale.yml")


def test_haproxy_accepts_its_configuration() -> None:
    binary = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary is not None, "make setup-tests installs haproxy"
    done = subprocess.run([binary, "-c", "-f", HAPROXY], capture_output=True, text=True)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr


def test_haproxy_leads_each_port_to_the_processes_of_its_service() -> None:
    text = HAPROXY.read_text()
    binds = {name: int(port) for port, name in re.findall(r"^    bind :(\d+) name (\w+)$", text, re.MULTILINE)}
    backends = re.findall(
        r"^backend (\w+) from processes\n    server-template (\w+)- 20 (\w+):(\d+)$", text, re.MULTILINE
    )
    assert binds == {name: process.port for name, process in SERVICES.items()}
    assert {name: int(port) for name, *_, port in backends} == binds
    assert all(name == prefix == host for name, prefix, host, _ in backends)


def test_haproxy_repeats_writes_only_where_the_service_takes_a_key() -> None:
    """By the OpenAPI documents: each POST with the header is repeated, nothing else, and no pattern is for nothing."""
    conditions = re.findall(r"^    acl takes_key (path|path_reg) (.+)$", HAPROXY.read_text(), re.MULTILINE)
    patterns = {
        re.escape(word) if kind == "path" else word.removeprefix("^").removesuffix("$")
        for kind, words in conditions
        for word in words.split()
    }
    used = set()
    for name in SERVICES:
        for path, method, takes_key in writes(name):
            matching = {pattern for pattern in patterns if re.fullmatch(pattern, path)}
            assert (bool(matching) and method == "post") == takes_key, f"{name}: {method} {path}"
            used |= matching if takes_key else set()
    assert used == patterns


def writes(name: str) -> list[tuple[str, str, bool]]:
    """Each path with a value for each parameter, each method that writes, and whether it takes an Idempotency-Key."""
    document = json.loads((ROOT / f"docs/api/{name}.json").read_text())
    return [
        (
            re.sub(r"\{\w+\}", "x1", path),
            method,
            any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ())),
        )
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in ("post", "put", "patch", "delete")
    ]


def test_haproxy_takes_the_headers_from_requests_that_name_an_operator(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    for name, default in overlay["haproxy"]["environment"].items():
        assert name in base["console"]["environment"]
        variable, _, instead = default.removeprefix("${").removesuffix("}").partition(":-")
        assert variable == name
        assert f'http-request del-header "${{{name}-{instead}}}"' in HAPROXY.read_text()


def test_its_refusal_is_that_of_a_service() -> None:
    assert f'{{"type":"{UNAVAILABLE.uri}","title":"{UNAVAILABLE.title}","status":503,' in HAPROXY.read_text()


def test_the_ports_of_haproxy_are_those_of_the_services_and_no_process_has_one_of_its_own(
    base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    published = [f"127.0.0.1:${{HAPROXY_{name.upper()}_PORT:-{one.port}}}:{one.port}" for name, one in SERVICES.items()]
    assert sorted(overlay["haproxy"]["ports"]) == sorted(published)
    lines = (DIRECTORY / "ports.env").read_text().splitlines()
    given = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert given == {f"{name.upper()}_PORT": "0" for name in SERVICES} | {"ORDER_GRPC_PORT": "0"}
    assert "127.0.0.1:${ORDER_GRPC_PORT:-" in (ROOT / "deploy/grpc/docker-compose.grpc.yml").read_text()
    for name in SERVICES:
        assert f"${{{name.upper()}_PORT:-" in base[name]["ports"][0]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_scaled_and_has_time_to_drain(name: str, overlay: dict[str, Any]) -> None:
    assert overlay[name]["scale"] == f"${{{name.upper()}_PROCESSES:-2}}"
    drain = re.fullmatch(r"\$\{\w+:-(\d+)\}", overlay[name]["environment"]["ORDERSAGA_DRAIN_SECONDS"])
    assert drain is not None
    assert int(drain[1]) + STOP_SECONDS < int(overlay[name]["stop_grace_period"].removesuffix("s"))


def test_what_stands_beside_the_services_is_confined(overlay: dict[str, Any]) -> None:
    service = overlay["haproxy"]
    assert overlay.keys() == {"haproxy", *SERVICES}
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["networks"] == ["edge"], "away from the servers"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
