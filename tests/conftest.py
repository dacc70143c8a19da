"""Fixtures for every test: servers, separate databases and broker, and unique ids."""

import gc
import os
import secrets
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from pymongo import AsyncMongoClient

from tests.support import sharding
from tests.support.memory_databases import MEMORY, MONGODB
from tests.support.seeds import IS_LONG_FORM
from tests.support.servers import (
    AMQP_MANAGEMENT_URL_VARIABLE,
    AMQP_URL_VARIABLE,
    NativeServers,
    Servers,
    delete_topology,
    drop_databases,
    drop_databases_of,
    empty_databases_of,
    native_servers,
    run_servers,
)
from tests.support.shared_adapters import share_adapters

# How fast a machine is must not decide whether a test passes.
# Nor must chance: the suite tries the same examples each time, and `make test-seeds` looks for others.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=not IS_LONG_FORM
)
settings.load_profile("any-machine")

# As the services log: rendering the local variables of a deep traceback stops the event loop for seconds.
# To stderr: a line of another task must not end up in the stdout of a command that a test runs in this process.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ],
    logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
)

sharding.watch()
share_adapters()

gc.disable()  # until all tests are collected: what that makes is used until the end


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among the modules and the ten thousand tests."""
    gc.freeze()
    gc.enable()


WORKERS = 3
"""More than the cores, as much of the time goes into waiting for servers to be away and for processes to start."""


def pytest_xdist_auto_num_workers() -> int:
    """Workers for `-n auto`: each has its own servers, so only one if the servers are given."""
    given = os.environ.get(AMQP_URL_VARIABLE) and not os.environ.get(AMQP_MANAGEMENT_URL_VARIABLE)
    return 0 if given else WORKERS


SLOW_FILES = (
    "end_to_end/test_up_native.py",
    "end_to_end/test_incident.py",
    "end_to_end/test_cluster.py",
    "faults/test_outages.py",
    "faults/test_provisioning_kills.py",
    "integration/test_console_pages.py",
    "integration/test_broker_users.py",
    "faults/test_kill.py",
    "end_to_end/test_chaos.py",
    "integration/test_readiness.py",
    "faults/test_outage_words.py",
    "faults/test_broker_alarms.py",
    "integration/test_metrics.py",
    "end_to_end/test_demo.py",
    "end_to_end/test_upgrade.py",
    "end_to_end/test_saga.py",
    "end_to_end/test_funds.py",
    "faults/test_funds.py",
    "faults/test_simulation.py",
)
"""The longest first. A file that is missing here, or has become faster, only costs a little time."""


@pytest.hookimpl(trylast=True)  # after pytest has put together what shares a fixture
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that no worker is still busy with one when the others have finished."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        items[:] = _slow_ones_first(items, workers)


def _slow_ones_first(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Deal the slow files out, each to one worker; quick tests make up the rest of its share, and can be stolen.

    With worksteal, xdist gives each worker one piece of the list, all of the same length but for a test.
    """
    slow = defaultdict[str, list[pytest.Item]](list)
    quick: list[pytest.Item] = []
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        (slow[name] if name in SLOW_FILES else quick).append(item)
    files = [slow[name] for name in SLOW_FILES if name in slow]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        length = (len(items) - len(ordered)) // (workers - worker)
        share = [item for file in files[worker::workers] for item in file]
        fill = max(0, length - len(share))
        ordered += share + quick[:fill]
        del quick[:fill]
    return ordered + quick


# A run in the background of a script is started with SIGINT ignored, and so would be everything that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[Servers]:
    """The MongoDB and RabbitMQ of this test run."""

    def announce(line: str) -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.stdout.write(f"\n{line}\n")

    async with run_servers(announce) as found:
        yield found


@pytest.fixture(scope="session")
async def servers_to_stop(servers: Servers) -> AsyncIterator[NativeServers]:
    """Servers that are processes of this machine: those of this test run, unless these are others."""
    if servers.native is not None:
        yield servers.native
        return
    async with native_servers() as found:
        yield found


@pytest.fixture
async def own_servers(servers_to_stop: NativeServers, unique_id: str) -> AsyncIterator[NativeServers]:
    """A MongoDB and a RabbitMQ that this test may stop, kill and start again: nothing else uses them meanwhile."""
    await delete_topology(servers_to_stop.amqp_url)
    yield servers_to_stop
    await servers_to_stop.start()
    await delete_topology(servers_to_stop.amqp_url)
    await drop_databases(servers_to_stop.mongodb_url, f"t{unique_id}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests marked `both_databases` over MongoDB and over the database in memory, unless they name one."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if (
        metafunc.definition.get_closest_marker("both_databases")
        and "mongodb_url" in metafunc.fixturenames
        and "mongodb_url" not in named
    ):
        metafunc.parametrize("mongodb_url", [MONGODB, MEMORY], indirect=True)


@pytest.fixture
def mongodb_url(servers: Servers, request: pytest.FixtureRequest) -> str:
    return MEMORY if getattr(request, "param", MONGODB) == MEMORY else servers.mongodb_url


@pytest.fixture
def amqp_url(servers: Servers) -> str:
    return servers.amqp_url


@pytest.fixture
async def clean_broker(amqp_url: str) -> AsyncIterator[str]:
    """The broker's URL, with none of the declared queues and exchanges on it, before the test and after it."""
    await delete_topology(amqp_url)
    yield amqp_url
    await delete_topology(amqp_url)


@pytest.fixture(scope="module")
async def bare_broker(servers: Servers) -> AsyncIterator[str]:
    """The same for a whole module, whose tests leave no messages, or use `clean_broker`."""
    await delete_topology(servers.amqp_url)
    yield servers.amqp_url
    await delete_topology(servers.amqp_url)


@pytest.fixture(autouse=True)
def shardable_commands() -> Iterator[None]:
    """Fail the test in which the product sends a command that a sharded collection refuses."""
    sharding.refused.found.clear()
    yield
    assert not sharding.refused.found, "docs/sharding.md says which commands need the whole `_id`"


@pytest.fixture
def unique_id() -> str:
    """An id that no other test and no other run has."""
    return secrets.token_hex(8)


@pytest.fixture(scope="session")
async def housekeeper(servers: Servers) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
    """The client that removes what tests leave."""
    async with AsyncMongoClient[dict[str, Any]](servers.mongodb_url) as client:
        yield client


@pytest.fixture
async def database_prefix(
    mongodb_url: str, unique_id: str, housekeeper: AsyncMongoClient[dict[str, Any]]
) -> AsyncIterator[str]:
    """A prefix for the names of this test's databases; they are dropped when it ends."""
    prefix = f"t{unique_id}"
    yield prefix
    if mongodb_url != MEMORY:
        await drop_databases_of(housekeeper, prefix)


@pytest.fixture(scope="module")
async def module_prefix(housekeeper: AsyncMongoClient[dict[str, Any]]) -> AsyncIterator[str]:
    """A prefix for the names of databases that the tests of a module share; they are dropped after the last."""
    prefix = f"t{secrets.token_hex(8)}"
    yield prefix
    await drop_databases_of(housekeeper, prefix)


@pytest.fixture
async def emptied_prefix(
    module_prefix: str, mongodb_url: str, housekeeper: AsyncMongoClient[dict[str, Any]]
) -> AsyncIterator[str]:
    """A `database_prefix` for modules whose tests do not look at how collections are created, which costs more than
    most tests: each finds those of the tests before, without documents.
    """
    yield module_prefix
    if mongodb_url != MEMORY:
        await empty_databases_of(housekeeper, module_prefix)
