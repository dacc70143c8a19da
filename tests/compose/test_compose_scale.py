"""deploy/scale over docker-compose.yml: several processes of each service behind haproxy, found by Prometheus."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.services import SERVICES
from tests.compose.images import ImageError, images_of_scale
from tests.compose.orders import Persistent, all_settled, assert_books_balance, none_unsettled, place, put_stock
from tests.compose.stack import (
    PORT_VARIABLES,
    ROOT,
    SCALE_OVERLAY,
    ComposeStack,
    all_ready,
    compose_command,
    compose_stack,
)
from tests.support.access import bearer
from tests.support.eventually import eventually
from tests.support.order_load import PRODUCT, steady_orders

WITHIN_SECONDS = 600
"""Thirteen processes of ours on what may be two cores."""
RATE = 10.0
"""Orders per second."""
PROCESSES = {**dict.fromkeys(SERVICES, 2), "order": 3}
BESIDE = ("haproxy", "prometheus", "alertmanager")
PORTS = {
    **PORT_VARIABLES,
    **{name: f"HAPROXY_{name.upper()}_PORT" for name in SERVICES},
    **{name: f"{name.upper()}_PORT" for name in ("prometheus", "alertmanager")},
}


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[ComposeStack]:
    """The whole stack with several processes of each service, ready."""
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    try:
        images = await asyncio.to_thread(images_of_scale)
    except ImageError as error:
        pytest.skip(str(error))
    lines = (ROOT / "deploy/scale/ports.env").read_text().splitlines()
    variables = dict(line.split("=") for line in lines if not line.startswith("#"))
    variables |= images | {f"{name.upper()}_PROCESSES": str(number) for name, number in PROCESSES.items()}
    ports = {name: variable for name, variable in PORTS.items() if variable != PORT_VARIABLES["grpc"]}
    variables[PORT_VARIABLES["grpc"]] = "0"
    with compose_stack(command, overlays=[SCALE_OVERLAY], variables=variables, port_variables=ports) as running:
        await all_ready(running, WITHIN_SECONDS)
        await eventually(lambda: all_processes_ready(running), WITHIN_SECONDS, "all processes to be ready")
        yield running


@pytest.fixture(scope="module")
async def client(stack: ComposeStack) -> AsyncIterator[httpx.AsyncClient]:
    key = stack.command("keys", "create", "--role", "admin", "--owner", "tests").strip()
    async with httpx.AsyncClient(timeout=90, headers=bearer(key)) as client:
        yield client


async def all_processes_ready(stack: ComposeStack) -> bool:
    """Ask every process at its own address: haproxy would choose one, and the engine's health lags behind."""
    async with httpx.AsyncClient(timeout=30) as client:
        for name, number in PROCESSES.items():
            containers = await asyncio.to_thread(stack.inspect_all, name)
            networks = [container["NetworkSettings"]["Networks"].values() for container in containers]
            urls = [f"http://{next(iter(each))['IPAddress']}:{SERVICES[name].port}/readyz" for each in networks]
            assert [(await client.get(url)).status_code for url in urls] == [200] * number, name
    return True


async def test_orders_settle_and_every_service_answers_at_its_usual_port(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    product = f"p-{unique_id}"
    await put_stock(stack, client, product, 5)
    by_status = await all_settled(stack, client, [await place(stack, client, product) for _ in range(8)])
    assert {status: len(found) for status, found in by_status.items()} == {"CONFIRMED": 5, "CANCELLED": 3}
    for service in SERVICES:
        answer = await client.get(f"{stack.url(service)}/openapi.json")
        assert service in answer.raise_for_status().json()["info"]["title"].lower()
    assert_books_balance(stack, orders=8)


async def test_prometheus_finds_every_process_and_its_alertmanager(
    stack: ComposeStack, client: httpx.AsyncClient
) -> None:
    async def found() -> bool:
        targets = await data(client, f"{stack.url('prometheus')}/api/v1/targets?state=active")
        up = Counter(one["labels"]["service"] for one in targets["activeTargets"] if one["health"] == "up")
        assert up == PROCESSES, targets
        active = await data(client, f"{stack.url('prometheus')}/api/v1/alertmanagers")
        assert len(active["activeAlertmanagers"]) == 1
        return True

    await eventually(found, WITHIN_SECONDS, "Prometheus to find all processes")
    rules = await data(client, f"{stack.url('prometheus')}/api/v1/rules")
    assert {rule["health"] for group in rules["groups"] for rule in group["rules"]} <= {"ok", "unknown"}


async def data(client: httpx.AsyncClient, url: str) -> Any:
    return (await client.get(url)).raise_for_status().json()["data"]


def test_what_stands_beside_the_services_is_confined_and_published_on_loopback_only(stack: ComposeStack) -> None:
    for name in BESIDE:
        container = stack.inspect(name)
        host = container["HostConfig"]
        assert (host["CapDrop"], host["ReadonlyRootfs"]) == (["ALL"], True), name
        assert container["Config"]["User"] not in ("", "0", "root"), name
        assert host["PidsLimit"] > 0, name
        assert host["Memory"] > 0, name
        ports = container["NetworkSettings"]["Ports"].values()
        assert {binding["HostIp"] for bindings in ports for binding in bindings or ()} == {"127.0.0.1"}, name


async def test_no_request_fails_while_a_process_is_stopped_and_another_one_is_killed(
    stack: ComposeStack, client: httpx.AsyncClient
) -> None:
    """For clients that send a request again once, after a 503. haproxy repeats what got no answer under its key."""
    await put_stock(stack, client, PRODUCT, 1_000_000)
    stopped, killed, _ = (container["Id"] for container in stack.inspect_all("order"))
    async with steady_orders(Persistent(stack, client, attempts=2), RATE) as load:
        await load.grown_by(20, WITHIN_SECONDS)
        stop = ("docker", "stop", "--time", "30", stopped)
        await asyncio.to_thread(subprocess.run, stop, capture_output=True, check=True)
        await load.grown_by(20, WITHIN_SECONDS)
        await asyncio.to_thread(stack.crash, killed)
        await load.grown_by(20, WITHIN_SECONDS)
        await asyncio.to_thread(stack.up)
        await eventually(lambda: all_processes_ready(stack), WITHIN_SECONDS, "all processes to be ready again")
        await load.grown_by(20, WITHIN_SECONDS)

    assert load.failures == []
    after = {container["Id"]: container for container in stack.inspect_all("order")}
    assert after[killed]["RestartCount"] == 1
    await none_unsettled(stack, client, WITHIN_SECONDS)
    assert_books_balance(stack, orders=len(load.accepted))
