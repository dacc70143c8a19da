"""deploy/scale and the profile monitoring: several processes of each service behind haproxy, watched by Prometheus.

Together, since a stack takes minutes to start. Where no registry is reached, stand-ins for the images take their place.
"""

import asyncio
import json
import logging
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aio_pika
import httpx
import pytest

from shared.services import SERVICES
from shared.topology import ORDER_INBOX
from tests.compose.images import EXPORTER, OF_MONITORING, OF_SCALE, ImageError, images
from tests.compose.orders import (
    Persistent,
    assert_books_balance,
    assert_eight_settle_with_stock_for_five,
    none_unsettled,
    put_stock,
)
from tests.compose.stack import (
    GRPC,
    PORT_VARIABLES,
    ROOT,
    SCALE_OVERLAY,
    WITH_SIMULATOR,
    ComposeStack,
    all_ready,
    compose_command,
    compose_stack,
)
from tests.support.eventually import eventually
from tests.support.monitoring import DASHBOARDS, OF_SERVERS
from tests.support.order_load import PRODUCT, steady_orders

logger = logging.getLogger(__name__)

WITHIN_SECONDS = 600
"""Eleven processes of ours on what may be two cores."""
RATE = 5.0
"""Orders per second."""
PROCESSES = {**dict.fromkeys(SERVICES, 2), "notification": 1}
MONITORING = ("prometheus", "alertmanager", "grafana", "mongodb-exporter")
BESIDE = ("haproxy", *MONITORING)
PORTS = {
    **{name: variable for name, variable in PORT_VARIABLES.items() if name != GRPC},
    **{name: f"HAPROXY_{name.upper()}_PORT" for name in SERVICES},
    **{name: f"{name.upper()}_PORT" for name in ("prometheus", "alertmanager", "grafana")},
}


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[ComposeStack]:
    """The whole stack with several processes of each service, ready."""
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    try:
        found = await asyncio.to_thread(images, OF_SCALE + OF_MONITORING)
    except ImageError as error:
        pytest.skip(str(error))
    lines = (ROOT / "deploy/scale/ports.env").read_text().splitlines()
    variables = dict(line.split("=") for line in lines if not line.startswith("#"))
    variables |= found | EXPORTER | {f"{name.upper()}_PROCESSES": str(number) for name, number in PROCESSES.items()}
    variables["COMPOSE_PROFILES"] = f"{WITH_SIMULATOR['COMPOSE_PROFILES']},monitoring"
    with compose_stack(command, overlays=[SCALE_OVERLAY], variables=variables, port_variables=PORTS) as running:
        await all_ready(running, WITHIN_SECONDS)
        await eventually(lambda: all_processes_ready(running), WITHIN_SECONDS, "all processes to be ready")
        yield running


@pytest.fixture(scope="module")
async def client(stack: ComposeStack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client(stack.admin_key(), timeout=90) as client:
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
    await assert_eight_settle_with_stock_for_five(stack, client, product)
    for service in SERVICES:
        answer = await client.get(f"{stack.url(service)}/openapi.json")
        assert service in answer.raise_for_status().json()["info"]["title"].lower()
    assert_books_balance(stack, orders=8)


async def test_prometheus_finds_every_process_and_its_alertmanager(
    stack: ComposeStack, client: httpx.AsyncClient
) -> None:
    async def found() -> bool:
        targets = await data(client, f"{stack.url('prometheus')}/api/v1/targets?state=active")
        assert {one["health"] for one in targets["activeTargets"]} == {"up"}, targets
        up = Counter(one["labels"].get("service") or one["labels"]["job"] for one in targets["activeTargets"])
        assert up == PROCESSES | {"mongodb": 1, "rabbitmq": 1}, targets
        active = await data(client, f"{stack.url('prometheus')}/api/v1/alertmanagers")
        assert len(active["activeAlertmanagers"]) == 1
        return True

    await eventually(found, WITHIN_SECONDS, "Prometheus to find all processes")
    rules = await data(client, f"{stack.url('prometheus')}/api/v1/rules")
    assert {rule["health"] for group in rules["groups"] for rule in group["rules"]} <= {"ok", "unknown"}


async def test_the_servers_serve_what_alerts_and_dashboards_ask_them_for(
    stack: ComposeStack, client: httpx.AsyncClient
) -> None:
    """RabbitMQ with its own plugin. The stand-in for the exporter of MongoDB follows the rules of the real one."""

    async def served() -> bool:
        names = await data(client, f"{stack.url('prometheus')}/api/v1/label/__name__/values")
        assert set(names) >= OF_SERVERS, OF_SERVERS - set(names)
        return True

    await eventually(served, WITHIN_SECONDS, "Prometheus to have read both servers")
    found = await data(client, f"{stack.url('prometheus')}/api/v1/query?query=mongodb_up")
    assert [(one["metric"]["instance"], one["value"][1]) for one in found["result"]] == [("mongo:27017", "1")]


async def test_grafana_has_all_dashboards_and_reads_prometheus_for_who_has_the_password(stack: ComposeStack) -> None:
    async with httpx.AsyncClient(base_url=stack.url("grafana"), timeout=30) as client:
        assert (await client.get("/api/search", auth=("admin", "admin"))).status_code == 401
        client.auth = httpx.BasicAuth("admin", stack.secret("grafana-admin-password"))

        async def loaded() -> bool:
            found = (await client.get("/api/search?type=dash-db")).raise_for_status().json()
            assert {one["uid"] for one in found} == {f"ordersaga-{file.stem}" for file in DASHBOARDS}
            return True

        await eventually(loaded, WITHIN_SECONDS, "Grafana to load the dashboards")
        [source] = (await client.get("/api/datasources")).raise_for_status().json()
        asked = f"/api/datasources/proxy/uid/{source['uid']}/api/v1/query"
        answer = await client.get(asked, params={"query": 'up{service="order"}'})
        assert [one["value"][1] for one in answer.raise_for_status().json()["data"]["result"]] == ["1", "1"]


async def test_an_alert_reaches_alertmanager_with_its_receiver(stack: ComposeStack, client: httpx.AsyncClient) -> None:
    connection = await aio_pika.connect(stack.amqp_url("deployer"))
    async with connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"no JSON", type="stock.released"), ORDER_INBOX)

    async def sent() -> bool:
        found = (await client.get(f"{stack.url('alertmanager')}/api/v2/alerts")).raise_for_status().json()
        by_name = {one["labels"]["alertname"]: one for one in found}
        assert [one["name"] for one in by_name["DeadLettersGrowing"]["receivers"]] == ["operators"]
        return True

    await eventually(sent, WITHIN_SECONDS, "Alertmanager to get the alert")
    [letter] = json.loads(stack.command("dead-letters", "list", "--json"))["items"]
    stack.command("dead-letters", "discard", letter["id"], "--yes", "--why", "a test")


async def test_what_watches_is_healthy(stack: ComposeStack) -> None:
    def all_healthy() -> bool:
        healthy = {name: stack.inspect(name)["State"]["Health"]["Status"] for name in MONITORING}
        assert healthy == dict.fromkeys(MONITORING, "healthy")
        return True

    await eventually(lambda: asyncio.to_thread(all_healthy), WITHIN_SECONDS, "everything that watches to be healthy")


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
        published = {binding["HostIp"] for bindings in ports for binding in bindings or ()}
        assert published == ({"127.0.0.1"} if name in PORTS or name == "haproxy" else set()), name


async def test_no_order_fails_while_processes_are_stopped_replaced_and_killed(
    stack: ComposeStack, client: httpx.AsyncClient
) -> None:
    """For clients that send a request again once, after a 503. haproxy repeats what got no answer under its key."""
    await put_stock(stack, client, PRODUCT, 1_000_000)
    persistent = Persistent(stack, client, attempts=2)
    during: dict[str, During] = {}
    async with steady_orders(persistent, RATE, patient=False) as load:
        for change in (nothing, stop_one, replace_all, kill_one):
            seen, failed = persistent.seen.copy(), len(load.failures)
            await load.grown_by(20, WITHIN_SECONDS)
            await change(stack)
            await load.grown_by(20, WITHIN_SECONDS)
            during[change.__name__] = During(persistent.seen - seen, load.failures[failed:])

    logger.info("seen during each change: %s", during)
    for change in (nothing, stop_one, replace_all):
        assert during[change.__name__].seen.keys() <= ANSWERS, during
        assert during[change.__name__].failures == [], during
    killed = during[kill_one.__name__]
    assert killed.seen.keys() <= ANSWERS | {502}, during
    # A cancellation has no key: one that was in progress is not repeated.
    assert [failure for failure in killed.failures if "/cancel: 502" not in failure] == [], during
    await none_unsettled(stack, client, WITHIN_SECONDS)
    assert_books_balance(stack, orders=len(load.accepted))


ANSWERS = {202, 409, 503}
"""An order that is settled before it is cancelled is a conflict; a 503 may be sent again."""


@dataclass(frozen=True)
class During:
    """What clients saw during a change: answers by status, and the requests that failed in the end."""

    seen: Counter[int]
    failures: list[str]


async def nothing(stack: ComposeStack) -> None:
    """What clients see without any change."""


async def stop_one(stack: ComposeStack) -> None:
    """Stop a process of the order service, and start it again."""
    stopped, *_ = containers(stack)
    await asyncio.to_thread(docker, "stop", stopped)
    await asyncio.to_thread(stack.up)
    await eventually(lambda: all_processes_ready(stack), WITHIN_SECONDS, "all processes to be ready again")


async def replace_all(stack: ComposeStack) -> None:
    """Replace the processes of the order service with the commands of docs/containers.md."""
    old = containers(stack)
    more = ("up", "--detach", "--no-deps", "--no-recreate", "--scale", f"order={2 * len(old)}", "order")
    await asyncio.to_thread(stack.run, *more)
    await eventually(lambda: asyncio.to_thread(healthy, stack, 2 * len(old)), WITHIN_SECONDS, "the new ones")
    await asyncio.to_thread(docker, "stop", "--time", "20", *old)
    await asyncio.to_thread(docker, "rm", *old)
    assert set(containers(stack)).isdisjoint(old)


async def kill_one(stack: ComposeStack) -> None:
    """Kill a process of the order service, which the engine starts again."""
    killed, *_ = containers(stack)
    await asyncio.to_thread(stack.crash, killed)
    await eventually(lambda: all_processes_ready(stack), WITHIN_SECONDS, "all processes to be ready again")
    assert {one["Id"]: one["RestartCount"] for one in stack.inspect_all("order")}[killed] == 1


def containers(stack: ComposeStack) -> list[str]:
    """The ids of the containers of the order service."""
    return stack.run("ps", "--quiet", "order").split()


def healthy(stack: ComposeStack, number: int) -> bool:
    assert [one["State"]["Health"]["Status"] for one in stack.inspect_all("order")] == ["healthy"] * number
    return True


def docker(*words: str) -> None:
    subprocess.run(("docker", *words), capture_output=True, check=True)
