"""The stack of docker-compose.yml, built and run by a real engine."""

import asyncio
import json
import subprocess
import tomllib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
import pymongo
import pytest

from shared import services as kinds
from shared.broker_rights import RIGHTS
from shared.topology import ORDER_INBOX
from tests.compose.orders import (
    all_settled,
    assert_books_balance,
    charged,
    place,
    put_stock,
    settled,
    stock_of,
)
from tests.compose.stack import ROOT, SERVICES, ComposeStack, all_ready, compose_command, compose_stack, place_over_grpc
from tests.support.database_attempts import assert_least_rights as database_rights
from tests.support.database_attempts import refused
from tests.support.eventually import eventually
from tests.support.guarded_rabbitmq import assert_least_rights as broker_rights

# A first start pulls up Erlang, mongod and five processes of ours on what may be two cores.
WHY = {"Ordersaga-Reason": "the customer asks for it"}
READY_WITHIN_SECONDS = 300
SERVICE_USER = 10001


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[ComposeStack]:
    """The whole stack, ready."""
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    with compose_stack(command) as running:
        await all_ready(running, READY_WITHIN_SECONDS)
        yield running


@pytest.fixture
async def client(stack: ComposeStack, admin_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client(admin_key) as client:
        yield client


@pytest.fixture(scope="module")
async def admin_key(stack: ComposeStack) -> str:
    return stack.admin_key()


async def test_of_ten_orders_for_five_units_five_are_confirmed(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    product = f"p-{unique_id}"
    await put_stock(stack, client, product, 5)

    orders = await asyncio.gather(*(place(stack, client, product) for _ in range(10)))
    by_status = await all_settled(stack, client, list(orders))

    assert {status: len(found) for status, found in by_status.items()} == {"CONFIRMED": 5, "CANCELLED": 5}
    assert all(product in order["failureReason"] for order in by_status["CANCELLED"])
    assert await stock_of(stack, client, product) == {"productId": product, "quantity": 0, "reserved": 5, "shipped": 0}
    assert {await charged(stack, client, order) for order in by_status["CONFIRMED"]} == {"PROCESSED"}
    assert {await charged(stack, client, order) for order in by_status["CANCELLED"]} <= {"VOIDED", "REFUNDED"}
    assert_books_balance(stack, orders=10)


async def test_inventory_killed_among_a_hundred_orders_is_restarted_and_all_settle(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    product = f"p-{unique_id}"
    await put_stock(stack, client, product, 60)
    before = stack.inspect("inventory")

    async def place_some(count: int) -> list[str]:
        return await asyncio.gather(*(place(stack, client, product) for _ in range(count)))

    orders = await place_some(40)
    crash = asyncio.create_task(asyncio.to_thread(stack.crash, before["Id"]))
    orders += await place_some(30)
    await crash
    orders += await place_some(30)
    by_status = await all_settled(stack, client, orders)

    after = stack.inspect("inventory")
    assert after["RestartCount"] == before["RestartCount"] + 1
    assert after["State"]["Running"]
    assert {status: len(found) for status, found in by_status.items()} == {"CONFIRMED": 60, "CANCELLED": 40}
    assert await stock_of(stack, client, product) == {"productId": product, "quantity": 0, "reserved": 60, "shipped": 0}
    assert_books_balance(stack, orders=100)


async def test_a_server_is_bought_from_the_simulator(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    packages = [{"id": "1", "name": "203.0.113", "ips": ["203.0.113.5", "203.0.113.6"]}]
    answer = await client.post(f"{stack.url('simulator')}/_control/packages", json={"packages": packages})
    answer.raise_for_status()
    product = {"kind": "vps", "package": "203.0.113", "ram": 4096}
    answer = await client.put(f"{stack.url('inventory')}/products/v-{unique_id}", json=product)
    answer.raise_for_status()

    order = await settled(stack, client, await place(stack, client, f"v-{unique_id}"))

    assert order["status"] == "COMPLETED", order["failureReason"]
    assert order["server"]["ip"] in packages[0]["ips"]
    answer = await client.get(f"{stack.url('provisioning')}/jobs/{order['orderId']}/credentials", headers=WHY)
    assert answer.raise_for_status().json()["ip"] == order["server"]["ip"]
    assert_books_balance(stack, orders=1)


async def test_an_order_gets_a_slot_and_the_console_shows_it(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    await put_stock(stack, client, f"p-{unique_id}", 1)

    order = await settled(stack, client, await place(stack, client, f"p-{unique_id}", slot="auto"))

    assert order["status"] == "CONFIRMED", order["failureReason"]
    page = await client.get(f"{stack.url('console')}/orders/{order['orderId']}")
    assert order["slot"] in page.raise_for_status().text
    assert_books_balance(stack, orders=1)


async def test_an_unreadable_message_becomes_a_dead_letter_that_a_command_lists(
    stack: ComposeStack, unique_id: str
) -> None:
    connection = await aio_pika.connect(stack.amqp_url("deployer"))
    async with connection, connection.channel() as channel:
        poison = aio_pika.Message(b"no JSON", message_id=unique_id, type="stock.released")
        await channel.default_exchange.publish(poison, ORDER_INBOX)

    def listed() -> list[dict[str, Any]]:
        said = stack.command("dead-letters", "list", "--json")
        return [letter for letter in json.loads(said)["items"] if letter["messageId"] == unique_id]

    letters = await eventually(listed, within=60, message="the dead letter")
    assert letters is not None
    letter_id = letters[0]["id"]
    why = ("--yes", "--why", "a test")
    stack.command("dead-letters", "discard", letter_id, *why)
    assert listed() == []


def test_status_shows_all_services(stack: ComposeStack) -> None:
    said = json.loads(stack.command("status", "--json"))

    ready = {process["name"]: process["ready"] for process in said["processes"]}
    assert ready == dict.fromkeys(("mongodb", "rabbitmq", *(name for name in SERVICES if name != "simulator")), True)
    assert said["ready"]


async def test_an_order_over_grpc_is_confirmed(stack: ComposeStack, client: httpx.AsyncClient, admin_key: str) -> None:
    await put_stock(stack, client, "called", 5)
    assert await place_over_grpc(stack, admin_key, "called") == "ORDER_STATUS_CONFIRMED"


def test_load_finds_the_services(stack: ComposeStack) -> None:
    said = stack.command("load", "--orders", "20", "--json")

    assert json.loads(said)["audit"]["ok"], said


def test_the_image_carries_its_title_and_version(stack: ComposeStack) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labels = stack.inspect("order")["Config"]["Labels"]
    ask = "from importlib.metadata import version; print(version('ordersaga'))"

    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.title"] == "ordersaga"
    assert stack.run("run", "--rm", "--no-deps", "-T", "order", "python", "-c", ask).strip() == version


async def test_a_second_inventory_is_found_by_its_name_and_shares_the_work(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    """Prometheus' configuration asks for the addresses of a service's name as well."""
    await put_stock(stack, client, f"p-{unique_id}", 5)
    ask = "import socket; print(len({found[4] for found in socket.getaddrinfo('inventory', 3009, type=1)}))"

    def addresses() -> int:
        return int(stack.run("run", "--rm", "--no-deps", "-T", "order", "python", "-c", ask))

    stack.scale("inventory", 2)
    try:
        assert len(stack.run("ps", "--quiet", "inventory").split()) == 2
        assert addresses() == 2
        by_status = await all_settled(stack, client, [await place(stack, client, f"p-{unique_id}") for _ in range(6)])
        assert {status: len(found) for status, found in by_status.items()} == {"CONFIRMED": 5, "CANCELLED": 1}
    finally:
        stack.scale("inventory", 1)
        await all_ready(stack, READY_WITHIN_SECONDS)
    assert addresses() == 1
    assert_books_balance(stack, orders=6)


def test_the_image_can_trace(stack: ComposeStack) -> None:
    """If anything is missing for it, the process ends with an error."""
    start = "from shared.tracing import configure_tracing; configure_tracing('order', 'otlp')"
    stack.run("run", "--rm", "--no-deps", "-T", "order", "python", "-c", start)


def test_every_port_is_published_on_loopback_only(stack: ComposeStack) -> None:
    addresses = {
        (service, binding["HostIp"])
        for service in (*SERVICES, "mongo", "rabbitmq")
        for bindings in stack.inspect(service)["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }

    assert addresses == {(service, "127.0.0.1") for service in SERVICES}, "the servers publish none"


async def test_the_servers_ask_for_passwords_and_have_no_default_user(stack: ComposeStack) -> None:
    for user in ("guest:guest", "ordersaga:ordersaga", "order:order"):
        url = f"amqp://{user}@{urlsplit(stack.amqp_url('deployer')).hostname}:5672/ordersaga"
        with pytest.raises(aio_pika.exceptions.ProbableAuthenticationError):
            await aio_pika.connect(url)
    host = urlsplit(stack.mongodb_url("order")).hostname
    async with pymongo.AsyncMongoClient[dict[str, Any]](f"mongodb://{host}:27017/?directConnection=true") as client:
        assert await refused(client, lambda c: c["ordersaga_orders"]["orders"].find_one({}))


def test_each_container_sees_its_own_secrets_only(stack: ComposeStack) -> None:
    urls = {"amqp-url", "mongodb-url"}
    for service, names in {"order": urls, "console": urls | {"api-key"}}.items():
        listed = stack.run("exec", "-T", service, "find", "/run/ordersaga", "/var/lib/ordersaga", "-type", "f")
        found = {line.rpartition("/")[2] for line in listed.split()}
        assert found - {"keys.json", "keys.json.lock"} == names
        modes = stack.run("exec", "-T", service, "stat", "-c", "%a %u", *[f"/run/ordersaga/{name}" for name in names])
        assert set(modes.splitlines()) == {f"400 {SERVICE_USER}"}
    user = urlsplit(stack.run("exec", "-T", "order", "cat", "/run/ordersaga/amqp-url")).username
    assert user == "order"


def test_the_servers_have_no_way_out_and_every_container_is_bounded(stack: ComposeStack) -> None:
    for server in ("mongo", "rabbitmq"):
        [network] = stack.inspect(server)["NetworkSettings"]["Networks"]
        described = subprocess.run(["docker", "network", "inspect", network], capture_output=True, check=True).stdout
        assert json.loads(described)[0]["Internal"], f"{server} is on {network}, which has a way out"
    for service in (*SERVICES, "mongo", "rabbitmq"):
        assert stack.inspect(service)["HostConfig"]["PidsLimit"] > 0


def test_doctor_finds_nothing_wrong(stack: ComposeStack) -> None:
    report = stack.doctor()
    wrong = [finding["what"] for finding in report["findings"] if finding["outcome"] == "wrong"]
    # It looks for programs of this machine too, which an image does not have.
    assert set(wrong) <= {"mongod", "rabbitmq-server"}, report


def test_the_services_run_without_privileges(stack: ComposeStack) -> None:
    for service in SERVICES:
        status = stack.run("exec", "-T", service, "cat", "/proc/1/status")
        fields = dict(line.split(":", 1) for line in status.splitlines())

        assert fields["Uid"].split() == [str(SERVICE_USER)] * 4, service
        assert int(fields["CapBnd"], 16) == 0, service
        assert fields["NoNewPrivs"].strip() == "1", service


async def test_the_services_become_healthy_for_the_engine(stack: ComposeStack) -> None:
    def healthy() -> bool:
        health = {service: stack.inspect(service)["State"]["Health"]["Status"] for service in SERVICES}
        assert health == dict.fromkeys(SERVICES, "healthy")
        return True

    await eventually(healthy, within=30, message="the health checks to pass")


def test_the_steps_that_prepare_the_stack_can_be_repeated(stack: ComposeStack) -> None:
    before = stack.amqp_url("order")
    stack.run("run", "--rm", "--no-deps", "-T", "credentials")
    said = stack.run("run", "--rm", "--no-deps", "-T", "database")

    assert "has a primary" in said
    assert "updated user order" in said
    assert stack.amqp_url("order") == before
    assert "created" not in stack.run("run", "--rm", "--no-deps", "-T", "topology")


async def test_a_stop_lets_a_service_drain(stack: ComposeStack) -> None:
    stack.run("stop", "order", "payment")
    try:
        codes = {service: stack.inspect(service)["State"]["ExitCode"] for service in ("order", "payment")}
    finally:
        stack.up()
        await all_ready(stack, READY_WITHIN_SECONDS)

    assert codes == {"order": 0, "payment": 0}  # 137 would say that it had to be killed


async def test_the_books_are_kept_over_down_and_up(
    stack: ComposeStack, client: httpx.AsyncClient, unique_id: str
) -> None:
    product = f"p-{unique_id}"
    await put_stock(stack, client, product, 3)
    order = await settled(stack, client, await place(stack, client, product))

    stack.down()
    stack.up()
    await all_ready(stack, READY_WITHIN_SECONDS)

    assert await settled(stack, client, order["orderId"]) == order
    again = await settled(stack, client, await place(stack, client, product))
    assert (order["status"], again["status"]) == ("CONFIRMED", "CONFIRMED")
    assert await stock_of(stack, client, product) == {"productId": product, "quantity": 1, "reserved": 2, "shipped": 0}
    assert_books_balance(stack, orders=2)


async def test_each_service_may_do_on_both_servers_what_it_needs_and_nothing_else(stack: ComposeStack) -> None:
    """The last test, because the attempts leave messages behind, which become dead letters."""
    urls = {user: stack.amqp_url(user) for user in RIGHTS}
    await broker_rights(lambda user: urls[user])
    databases = {service.user: stack.mongodb_url(service.user) for service in kinds.SERVICES.values()}
    await database_rights(lambda service: databases[service.user], "ordersaga")
