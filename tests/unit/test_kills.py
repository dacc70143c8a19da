"""What the soak of kills calls lost, doubled or wrong, and what it may kill."""

from typing import Any, cast

import pytest

from benchmarks import kills
from benchmarks.failover import Placed
from benchmarks.failover_faults import BROKER_NODES, MEMBERS, SERVICES, Cluster
from benchmarks.kills_orders import Mixture
from benchmarks.kills_victims import PAUSED_SHARE, Kind, Victim, Victims, kinds

CLEAN: dict[str, Any] = {
    "ok": True,
    "violations": [],
    "unlisted": 0,
    "information": {"deadLetters": 0, "deadLettersRecorded": {"dead": 0, "handled": 0}},
}


def judged(
    placed: list[str | None], stored: dict[str, bool], books: dict[str, Any], missing: tuple[str, ...] = ()
) -> tuple[bool, dict[str, int]]:
    orders = [Placed(0.0, None, order_id) for order_id in placed]
    counts = kills.correctness(orders, stored, books)
    return kills.is_ok({**counts, "audit": books, "notBack": list(missing)}), counts


def test_all_is_well_if_every_accepted_order_is_stored_once_and_settled() -> None:
    found = judged(["a", "b", None], {"a": True, "b": True, "c": True}, CLEAN)
    assert found == (
        True,
        {
            "placed": 3,
            "accepted": 2,
            "lost": 0,
            "doubled": 0,
            "unsettled": 0,
            "deadLetters": 0,
            "violations": 0,
        },
    )


@pytest.mark.parametrize(
    ("placed", "stored", "books", "missing", "wrong"),
    [
        (["a", "b"], {"a": True}, CLEAN, (), "lost"),
        (["a"], {"a": True, "again": True}, CLEAN, (), "doubled"),
        (["a", "a"], {"a": True}, CLEAN, (), "doubled"),
        (["a"], {"a": False}, CLEAN, (), "unsettled"),
        (["a"], {"a": True}, {**CLEAN, "violations": ["stock"]}, (), "violations"),
        (["a"], {"a": True}, {**CLEAN, "unlisted": 1}, (), "violations"),
        (["a"], {"a": True}, {**CLEAN, "ok": False}, (), None),
        (["a"], {"a": True}, CLEAN, ("rabbitmq-2",), None),
        (
            ["a"],
            {"a": True},
            {**CLEAN, "information": {"deadLetters": 0, "deadLettersRecorded": {"dead": 0, "handled": 1}}},
            (),
            "deadLetters",
        ),
    ],
)
def test_it_fails_for_each_thing_that_must_not_be(
    placed: list[str | None],
    stored: dict[str, bool],
    books: dict[str, Any],
    missing: tuple[str, ...],
    wrong: str | None,
) -> None:
    ok, counts = judged(placed, stored, books, missing)
    assert not ok
    assert [name for name in ("lost", "doubled", "unsettled", "deadLetters", "violations") if counts[name]] == (
        [wrong] if wrong else []
    )


class PartlyAway:
    """A cluster of which some processes are away."""

    def __init__(self, *away: str) -> None:
        self.away = set(away)

    def runs(self, name: str) -> bool:
        return name not in self.away

    async def leader(self, _queue: str) -> str:
        return "rabbitmq-3"

    async def primary(self) -> str:
        return "mongodb-2"


async def chosen(cluster: PartlyAway, found: list[Kind], number: int = 300, seed: int = 1) -> list[Victim]:
    victims = Victims(cast("Cluster", cluster), found, seed)
    return [await victims.next(60) for _ in range(number)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kills_victims.CHECK_SECONDS", 0.0)


async def test_everything_is_a_victim_at_some_time_and_a_seed_repeats_the_sequence() -> None:
    first = await chosen(PartlyAway(), list(kinds(2)))
    names = {*BROKER_NODES, *MEMBERS, *(name for each in (*SERVICES, "console") for name in (each, f"{each}-2"))}
    assert {victim.process for victim in first} == names
    assert 0 < sum(victim.pause is not None for victim in first) < 2 * PAUSED_SHARE * len(first)
    assert await chosen(PartlyAway(), list(kinds(2))) == first
    assert await chosen(PartlyAway(), list(kinds(2)), seed=2) != first


async def test_nothing_dies_that_would_cost_the_others_their_majority() -> None:
    victims = await chosen(PartlyAway("rabbitmq-2", "mongodb", "order-2"), list(kinds(2)))
    assert not {victim.process for victim in victims} & {*BROKER_NODES, *MEMBERS, "order", "order-2"}


async def test_it_ends_if_nothing_comes_back() -> None:
    victims = Victims(cast("Cluster", PartlyAway("mongodb")), kinds(1, "primary, member"), 1)
    with pytest.raises(TimeoutError):
        await victims.next(0.05)


def test_kinds_can_be_named() -> None:
    assert [kind.title for kind in kinds(1, "order,primary")] == ["primary", "order"]
    with pytest.raises(SystemExit, match="no victims: nobody; choose from leader of an inbox, broker node"):
        kinds(1, "nobody")


def test_orders_are_of_all_kinds() -> None:
    bodies = [Mixture([f"r{number}" for number in range(25)]).body(number) for number in range(200)]
    assert sum("delivery" in body for body in bodies) == 20
    assert sum(body["payment"].get("method") == "retainer" for body in bodies) == 40
    assert len({body["payment"].get("retainerId") for body in bodies}) > 5
    assert sum(body["payment"].get("token") == "tok_declined" for body in bodies) == 20
    assert sum(body["items"][0]["productId"].startswith("server-") for body in bodies) == 4
