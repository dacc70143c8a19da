"""The pods of deploy/kubernetes/overlays/single, run as containers with what the manifests say of them, sell goods."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from deploy.kubernetes.create_secrets import main
from shared.services import SERVICES
from tests.compose.pods import Pods, pods_of
from tests.support.access import bearer
from tests.support.eventually import NotWithinError, eventually
from tests.support.manifests import Manifests, read_secrets

START_SECONDS = 180
ORDERS = 20
Secrets = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    directory = tmp_path_factory.mktemp("created")
    main(["single", "--directory", str(directory)])
    return read_secrets(directory)


@pytest.fixture(scope="module")
def started(secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The pods, all started at once as `kubectl apply` does."""
    with pods_of(Manifests.of("overlays/single"), secrets, tmp_path_factory.mktemp("mounted")) as pods:
        for name in ("mongodb", "rabbitmq", *SERVICES, "commands"):
            pods.start(name)
        yield pods


@pytest.fixture(scope="module")
async def pods(started: Pods) -> Pods:
    """The pods, when all are ready and the job has ended."""
    last: list[str] = []

    async def declared() -> bool:
        done = await asyncio.to_thread(started.run_job, "topology")
        last[:] = [done.stdout + done.stderr]
        return done.returncode == 0

    async def ready() -> bool:
        answers = [await asyncio.to_thread(started.probe, name, "readiness") for name in SERVICES]
        last[:] = [answer for answer in answers if answer]
        return not last

    try:
        await eventually(declared, within=START_SECONDS, message="the job to declare the topology")
        await eventually(ready, within=START_SECONDS, message="the services to be ready")
    except NotWithinError:
        pytest.fail(f"{last}\n{started.logs()}")
    return started


@pytest.fixture
async def client(secrets: Secrets) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(headers=bearer(secrets["commands"]["api-key"]), timeout=30) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["startup", "liveness", "readiness"])
async def test_every_probe_of_a_service_succeeds(pods: Pods, kind: str) -> None:
    async def succeed() -> bool:  # one may exceed its time limit on a busy machine, as in a cluster
        answers = [await asyncio.to_thread(pods.probe, name, kind) for name in SERVICES]
        return not any(answers)

    await eventually(succeed, within=60, message=f"the {kind} probes to succeed")


async def test_orders_are_confirmed_and_the_books_balance(pods: Pods, client: httpx.AsyncClient) -> None:
    stocked = await client.put(f"{pods.url('inventory')}/inventory/book", json={"quantity": ORDERS - 5})
    assert stocked.is_success, stocked.text
    order = {
        "userId": "anna",
        "items": [{"productId": "book", "quantity": 1, "price": 10}],
        "totalAmount": 10,
        "payment": {"token": "tok_ok"},
    }
    answers = await asyncio.gather(*(client.post(f"{pods.url('order')}/orders", json=order) for _ in range(ORDERS)))
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    urls = [f"{pods.url('order')}/orders/{answer.json()['orderId']}" for answer in answers]
    settled: list[dict[str, Any]] = []

    async def all_settled() -> bool:
        settled[:] = [(await client.get(url)).json() for url in urls]
        return all(one["settled"] for one in settled)

    await eventually(all_settled, within=60, message="the orders to settle")
    statuses = [one["status"] for one in settled]
    assert (statuses.count("CONFIRMED"), statuses.count("CANCELLED")) == (ORDERS - 5, 5)
    audited = await asyncio.to_thread(pods.execute, "commands", "ordersaga", "audit", "--json")
    verdict = json.loads(audited.stdout)
    assert verdict["ok"], audited.stdout
    assert verdict["checked"]["orders"] == ORDERS


async def test_the_key_of_prometheus_reads_metrics_and_no_orders(pods: Pods, secrets: Secrets) -> None:
    async with httpx.AsyncClient(headers=bearer(secrets["monitoring"]["api-key"]), timeout=30) as prometheus:
        for name in SERVICES:
            scraped = await prometheus.get(f"{pods.url(name)}/metrics")
            assert scraped.status_code == httpx.codes.OK
            assert "service_up" in scraped.text
        refused = await prometheus.put(f"{pods.url('inventory')}/inventory/book", json={"quantity": 1})
        assert refused.status_code == httpx.codes.FORBIDDEN


async def test_a_container_cannot_change_its_file_system_or_read_secrets_of_others(pods: Pods) -> None:
    for name in SERVICES:
        assert pods.execute(name, "id", "-u").stdout == "10001\n"
        refused = pods.execute(name, "touch", "/app/changed", check=False)
        assert "Read-only file system" in refused.stderr
    files = pods.execute("order", "sh", "-c", "ls /run/ordersaga /run/ordersaga-keys").stdout
    assert set(files.split()) == {"/run/ordersaga:", "/run/ordersaga-keys:", "amqp-url", "mongodb-url", "keys.json"}


async def test_nothing_can_be_installed_in_a_container(pods: Pods) -> None:
    for program in ("apt", "apt-get", "pip", "pip3", "uv"):
        assert pods.execute("order", "sh", "-c", f"command -v {program}", check=False).stdout == ""
    assert pods.execute("order", "python", "-m", "pip", "--version", check=False).returncode == 1


async def test_the_jobs_can_be_repeated(pods: Pods, secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> None:
    declared = pods.run_job("topology")
    assert declared.returncode == 0, declared.stderr
    # The job of the overlay `ha` finds the users that are here already.
    other = Pods(Manifests.of("overlays/ha"), secrets, tmp_path_factory.mktemp("mounted"))
    prepared = other.run_job("database-users")
    assert prepared.returncode == 0, prepared.stderr
    assert "updated user order in ordersaga_orders" in prepared.stdout


async def test_services_end_by_themselves_within_their_grace(pods: Pods) -> None:
    for name in SERVICES:
        assert pods.stop(name) == 0, pods.logs()
