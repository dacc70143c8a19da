"""What every test can ask for: servers, databases and a broker of its own, an id that no other test has."""

import os
import re
import secrets
import sys
from collections.abc import AsyncIterator

import pymongo
import pytest
from hypothesis import HealthCheck, settings

from tests.servers import (
    AMQP_MANAGEMENT_URL_VARIABLE,
    AMQP_URL_VARIABLE,
    NativeServers,
    Servers,
    delete_topology,
    native_servers,
    run_servers,
)

# How fast a machine is must not decide whether a test passes.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

WORKERS = 3
"""More than the cores, as much of the time goes into waiting for servers to be away and for processes to start."""


def pytest_xdist_auto_num_workers() -> int:
    """Workers for `-n auto`: each has servers of its own, so one alone where the servers are given."""
    given = os.environ.get(AMQP_URL_VARIABLE) and not os.environ.get(AMQP_MANAGEMENT_URL_VARIABLE)
    return 0 if given else WORKERS


@pytest.fixture(scope="session")
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[Servers]:
    """The MongoDB and RabbitMQ of this test run."""

    def announce(line: str) -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.stdout.write(f"\n{line}\n")

    async with run_servers(announce) as found:
        yield found


@pytest.fixture
async def own_servers() -> AsyncIterator[NativeServers]:
    """A MongoDB and a RabbitMQ for this test alone, which it may stop, kill and start again."""
    async with native_servers() as found:
        yield found


@pytest.fixture
def mongodb_url(servers: Servers) -> str:
    return servers.mongodb_url


@pytest.fixture
def amqp_url(servers: Servers) -> str:
    return servers.amqp_url


@pytest.fixture
async def clean_broker(amqp_url: str) -> AsyncIterator[str]:
    """The broker's URL, with none of the declared queues and exchanges on it, before the test and after it."""
    await delete_topology(amqp_url)
    yield amqp_url
    await delete_topology(amqp_url)


@pytest.fixture
def unique_id() -> str:
    """An id that no other test and no other run has."""
    return secrets.token_hex(8)


@pytest.fixture
async def database_prefix(mongodb_url: str, unique_id: str) -> AsyncIterator[str]:
    """A prefix for the names of this test's databases; they are dropped when it ends."""
    prefix = f"t{unique_id}"
    yield prefix
    async with pymongo.AsyncMongoClient(mongodb_url) as client:
        for name in await client.list_database_names():
            if re.match(f"{prefix}(_|$)", name):
                await client.drop_database(name)
