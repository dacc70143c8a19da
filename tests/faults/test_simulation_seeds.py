"""The deterministic simulation over a number of seeds; `ordersaga simulate --seeds 10000` runs more of them."""

import gc
import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from typing import Any

import pytest

import order_service.placement
from inventory_service.pending_moves import PendingMoves
from order_service.orders import Orders
from simulation import books, plan, report, shrinking, world
from simulation.plan import Plan
from simulation.trace import HEADER
from simulation.world import Outcome
from tests.support.seeds import IS_LONG_FORM, SEEDS

GROUPS = 50
SEEDS_PER_GROUP = SEEDS // 5 if IS_LONG_FORM else 10


def short_plan(seed: int, orders: int = 4) -> Plan:
    """A plan of a few orders, with all faults of its seed."""
    drawn = plan.draw(seed)
    numbers, faults = drawn.numbers
    return drawn.keep(numbers[:orders], faults)


@pytest.mark.long_form
@pytest.mark.parametrize("group", range(GROUPS))
def test_the_books_balance_whatever_the_seed(group: int) -> None:
    for seed in range(group * SEEDS_PER_GROUP, (group + 1) * SEEDS_PER_GROUP):
        outcome = world.run(plan.draw(seed))
        assert not outcome.violations, "\n".join(report.story_lines(shrinking.shrink(outcome, world.run)))


def test_the_same_seed_gives_the_same_steps_in_another_process() -> None:
    outcome = world.run(short_plan(11))
    assert len(outcome.happened) > 5
    assert outcome.crashes > 0
    orders, faults = outcome.plan.numbers
    command = [
        *(sys.executable, "-m", "operations.cli", "simulate", "--seed", "11", "--json"),
        *("--only-orders", ",".join(map(str, orders)), "--only-faults", ",".join(map(str, faults))),
    ]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, stdout=subprocess.PIPE, check=True, timeout=600
        )
        assert json.loads(done.stdout)["sha256"] == outcome.sha256


def test_seeds_give_the_same_books_whatever_the_order_of_sets() -> None:
    code = (
        "from simulation import plan, world\n"
        "for seed in range(40, 46):\n"
        "    drawn = plan.draw(seed)\n"
        "    print(world.run(drawn.keep(range(6), drawn.numbers[1])).sha256)\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            check=True,
            timeout=600,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 6


def test_nothing_of_a_world_is_left_when_it_has_ended() -> None:
    before = worlds()  # pytest may keep some that belong to tests before this one
    world.run(short_plan(3))
    assert worlds() - before == set()


def worlds() -> set[int]:
    # not isinstance: it asks a weak proxy of another test's object, which may be gone, for its class
    return {id(each) for each in gc.get_objects() if type(each) is world.World}


def test_another_seed_gives_other_steps() -> None:
    assert world.run(short_plan(1, orders=1)).sha256 != world.run(short_plan(2, orders=1)).sha256


def test_a_fault_in_the_code_is_found_shrunk_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_service.placement, "order_id_of", lambda _owner, _key: uuid.uuid4().hex)
    found = next(
        outcome for seed in range(20) for outcome in [world.run(short_plan(seed))] if _says(outcome, "answered with")
    )
    shrunk = shrinking.shrink(found, world.run, most_runs=25)
    assert len(shrunk.plan.stories) == 1
    assert len(shrunk.plan.faults) < len(found.plan.faults)
    assert world.run(shrunk.plan).sha256 == shrunk.sha256  # what is told can be seen again
    story = "\n".join(report.story_lines(shrunk))
    assert f"order {shrunk.plan.stories[0].number} at" in story
    assert "VIOLATED  unexpected answer: order-" in story
    assert report.replay_command(shrunk) in story


def _says(outcome: Outcome, words: str) -> Any:
    return any(words in violation for violation in outcome.violations)


def test_an_order_that_is_accepted_and_not_stored_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def store_nothing(_orders: Orders, _records: Any) -> set[str]:
        return set()

    monkeypatch.setattr(Orders, "insert", store_nothing)
    outcome = world.run(plan.draw(5).keep((1,), ()))
    assert any("is lost and not settled" in violation for violation in outcome.violations), outcome.violations


def test_an_error_that_a_service_survives_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sweep_once(_moves: PendingMoves) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(PendingMoves, "sweep_once", sweep_once)
    outcome = world.run(plan.draw(5).keep((1,), ()))
    assert _says(outcome, "defect, background work failed: inventory-1"), outcome.violations
    assert _says(outcome, "error=TypeError: a defect"), outcome.violations


@pytest.mark.parametrize(
    ("seed", "orders", "faults"),
    [
        pytest.param(1197, (5, 6, 8, 9), (1, 2, 10, 20), id="cancelled while it is refunded, as its hold has ended"),
        pytest.param(2869, (10,), (3, 13, 15, 20), id="the way into a bought server is not found out"),
        pytest.param(2400, (2, 9), (6, 8, 9, 18, 19, 23), id="whether a server was bought is not found out"),
    ],
)
def test_an_order_may_fail_after_what_was_accepted_or_bought(
    seed: int, orders: tuple[int, ...], faults: tuple[int, ...]
) -> None:
    outcome = world.run(plan.draw(seed).keep(orders, faults))
    assert outcome.violations == ()
    assert outcome.statuses["FAILED"] >= 1


def test_a_server_that_was_sold_and_belongs_to_no_order_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    read = books.read_books

    def without_servers(databases: Any) -> Any:
        found = read(databases)
        for order in found.orders.values():
            order.pop("server", None)
        return found

    monkeypatch.setattr(books, "read_books", without_servers)
    sold = next(plan.draw(seed) for seed in range(20) if any(("vps", 1) in s.items for s in plan.draw(seed).stories))
    outcome = world.run(replace(sold, faults=()))
    assert _says(outcome, "servers: the provider has sold"), outcome.violations


def test_a_simulation_that_fails_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_books(_databases: Any) -> Any:
        raise KeyError("retainer")

    monkeypatch.setattr(books, "read_books", read_books)
    outcome = world.run(plan.draw(5).keep((1,), ()))
    assert outcome.plan.seed == 5
    assert [each.partition(" in ")[0] for each in outcome.violations] == ["the simulation failed: KeyError('retainer')"]


def test_the_debugger_stops_at_a_step_with_the_world_at_hand() -> None:
    command = [sys.executable, "-m", "operations.cli", "simulate", "--seed", "11", "--only-orders", "1"]
    asked = "p step\np sorted(world.documents('inventory', 'products')[0])[:2]\nup\np what\nq\n"
    done = subprocess.run(
        [*command, "--until", "200"], input=asked, capture_output=True, text=True, check=False, timeout=600
    )
    header, explained, *shown = done.stdout.splitlines()
    outcome = world.run(plan.draw(11).keep((1,), plan.draw(11).numbers[1]))
    assert (header, explained) == (outcome.trace[199], HEADER)
    assert f"(Pdb) {header!r}" in shown
    assert "(Pdb) ['_id', 'createdAt']" in shown
    assert done.stderr.endswith("without a verdict.\n")
    assert done.returncode == 1
