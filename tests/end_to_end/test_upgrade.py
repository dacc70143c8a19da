"""The last release and this one side by side over one broker and one database, while orders are placed.

Services are replaced one by one: the order service first, back again, the order service last. Clients have no balancer,
and send a request once more after a connection error. `make test-upgrade` runs the long form.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from operations.reading.broker import count_messages
from operations.stack.broker_topology import apply_topology
from shared import topology
from tests.support.last_release import NoReleaseError, extract, is_used_in
from tests.support.order_load import PRODUCT, Load, TryingTwice, all_settled, new_client, steady_orders
from tests.support.processes import Process, Stack, run_stack
from tests.support.seeds import IS_LONG_FORM

THIS, LAST = "this release", "the last release"
SHORT = (
    ("order", THIS),  # the order service first
    ("order", LAST),  # and back again
    ("inventory", THIS),
    ("payment", THIS),
    ("order", THIS),  # the order service last
)
LONG = (
    *(("order", THIS), ("inventory", THIS), ("payment", THIS)),
    *(("payment", LAST), ("inventory", LAST), ("order", LAST)),
    *(("inventory", THIS), ("payment", THIS), ("order", THIS)),
    *(("order", LAST), ("inventory", LAST), ("payment", LAST)),
)
STEPS, RATE, ORDERS_MEANWHILE = (3 * LONG, 50.0, 200) if IS_LONG_FORM else (SHORT, 15.0, 15)


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release."""
    try:
        return extract(tmp_path_factory.mktemp("last-release"))
    except NoReleaseError as error:
        pytest.skip(str(error))


@pytest.fixture
async def stack(mongodb_url: str, clean_broker: str, database_prefix: str) -> AsyncIterator[Stack]:
    async with run_stack(mongodb_url, clean_broker, database_prefix, topology="check", rate_limit="") as running:
        yield running


class Upgrade:
    """A stack whose processes are replaced by those of another release, while orders are placed."""

    def __init__(self, stack: Stack, last_release: Path) -> None:
        self._stack = stack
        self._trees = {THIS: None, LAST: last_release}
        self.order_processes: list[Process] = []

    async def start(self, release: str, *services: str, **settings: object) -> None:
        started = await self._stack.start_release(self._trees[release], *services, **settings)
        self.order_processes += [process for process in started if process.service == "order"]

    async def replace(self, service: str, release: str, load: Load) -> None:
        """Replace the process of a service, after both have worked side by side for a while."""
        (former,) = self._stack.processes(service)
        await self.start(release, service)
        await load.grown_by(ORDERS_MEANWHILE)
        former.process.terminate()
        assert await asyncio.wait_for(former.process.wait(), 120) == 0, "".join(former.output[-20:])
        if former in self.order_processes:
            self.order_processes.remove(former)


@pytest.mark.long_form
async def test_an_upgrade_in_either_order_and_a_rollback_lose_nothing(stack: Stack, last_release: Path) -> None:
    assert is_used_in(last_release)
    upgrade = Upgrade(stack, last_release)
    await upgrade.start(LAST, topology="declare")
    await stack.stock(PRODUCT, 1_000_000)
    await apply_topology(stack.amqp_url, topology.DEFAULT_OPTIONS)  # the first step of an upgrade

    checked = await stack.command("upgrade", "check")
    assert checked["ok"], checked["findings"]

    async with new_client(stack) as client, steady_orders(TryingTwice(upgrade.order_processes, client), RATE) as load:
        for service, release in STEPS:
            await upgrade.replace(service, release, load)

    assert load.failures == []
    await all_settled(stack)
    assert (await count_messages(stack.amqp_url))[topology.DEAD_LETTERS] == 0
    await stack.assert_books_balance()
    orders = [await stack.order(order_id) for order_id in load.accepted[:50]]
    assert Counter(order["status"] for order in orders).keys() == {"CONFIRMED", "CANCELLED"}
