"""What the soak of kills calls lost, doubled or wrong, and what it may kill."""

from collections import Counter
from typing import Any, cast

import pytest

from benchmarks import kills
from benchmarks.failover import Clients, Placed
from benchmarks.failover_faults import BROKER_NODES, MEMBERS, SERVICES, Cluster
from benchmarks.kills_orders import Mixture
from benchmarks.kills_victims import PAUSED, PAUSED_SHARE, Kind, Victim, Victims, kinds

CLEAN: dict[str, Any] = {
    "ok": True,
    "violations": [],
    "unlisted": 0,
    "information": {"deadLetters": 0, "deadLettersRecorded": {"dead": 0, "handled": 0}},
}


WHOLE = {"asked": 3, "done": 3, "end": kills.DONE, "never": 0, "notBack": []}
"""A run that has hit all that it was asked to, and after which everything is back."""


def judged(
    placed: list[str | None], stored: dict[str, bool], books: dict[str, Any], **course: object
) -> tuple[bool, dict[str, int]]:
    orders = [Placed(0.0, None, order_id) for order_id in placed]
    counts = kills.correctness(orders, stored, books)
    return kills.is_ok({**WHOLE, **counts, "audit": books, **course}), counts


def test_all_is_well_if_every_accepted_order_is_stored_once_and_settled() -> None:
    found = judged(["a", "b"], {"a": True, "b": True}, CLEAN)
    assert found == (
        True,
        {
            "placed": 2,
            "accepted": 2,
            "lost": 0,
            "doubled": 0,
            "givenUp": 0,
            "unsettled": 0,
            "deadLetters": 0,
            "violations": 0,
        },
    )


@pytest.mark.parametrize(
    ("placed", "stored", "books", "wrong"),
    [
        (["a", "b"], {"a": True}, CLEAN, ["lost"]),
        (["a"], {"a": True, "again": True}, CLEAN, ["doubled"]),
        (["a", "a"], {"a": True}, CLEAN, ["doubled"]),
        (["a", "b"], {"a": True, "again": True}, CLEAN, ["lost", "doubled"]),
        (["a", None], {"a": True}, CLEAN, ["givenUp"]),
        (["a", None], {"a": True, "in spite of it": True}, CLEAN, ["givenUp"]),
        (["a", None], {"a": True, "in spite of it": True, "again": True}, CLEAN, ["doubled", "givenUp"]),
        (["a"], {"a": False}, CLEAN, ["unsettled"]),
        (["a"], {"a": True}, {**CLEAN, "violations": ["stock"]}, ["violations"]),
        (["a"], {"a": True}, {**CLEAN, "unlisted": 1}, ["violations"]),
        (["a"], {"a": True}, {**CLEAN, "ok": False}, []),
        (
            ["a"],
            {"a": True},
            {**CLEAN, "information": {"deadLetters": 0, "deadLettersRecorded": {"dead": 0, "handled": 1}}},
            ["deadLetters"],
        ),
    ],
)
def test_it_fails_for_each_thing_that_must_not_be(
    placed: list[str | None],
    stored: dict[str, bool],
    books: dict[str, Any],
    wrong: list[str],
) -> None:
    ok, counts = judged(placed, stored, books)
    assert not ok
    assert [name for name in kills.WRONG if counts.get(name)] == wrong


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        ({"end": kills.TIME_OVER, "done": 1}, True),
        ({"end": kills.TIME_OVER, "done": 0}, False),
        ({"end": "none of these may be killed for 180 s: primary", "done": 1}, False),
        ({"never": 1}, False),
        ({"notBack": ["rabbitmq-2"]}, False),
    ],
)
def test_a_run_that_ends_early_or_with_something_away_fails_unless_its_time_was_over(
    course: dict[str, object], expected: bool
) -> None:
    assert judged(["a"], {"a": True}, CLEAN, **course)[0] is expected


def hit(kind: str, recovery: float | None, all_settled: float | None, pause: float | None = None) -> kills.Hit:
    return kills.Hit(Victim(kind, "order-2", pause), 0.0, recovery, all_settled, "")


def printed(lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> str:
    load = {"average": 7.5, "cores": 2}
    report = {**WHOLE, **kills.correctness([], {}, CLEAN), "kinds": lines, "audit": CLEAN, "load": load, "rate": 8.0}
    kills.show({**report, "seconds": 60, "repeatedByClients": {}})
    return capsys.readouterr().out


def test_the_rows_add_up_and_are_printed_as_in_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    hits = [hit("order", 1.0, 2.0), hit("order", 3.0, None), hit("primary", None, None), hit("primary", 9.0, 9.5, 6.0)]
    lines = kills.rows(hits, kinds(2, "primary, order, payment"))
    assert [(line["kind"], line["hits"], line["never"]) for line in lines] == [
        ("primary", 1, 1),
        ("order", 2, 1),
        ("payment", 0, 0),
        (PAUSED, 1, 0),
        ("all", 4, 2),
    ]
    shown = printed(lines, capsys)
    assert shown.startswith(
        "| killed | times | recovery p50 / p99 / max | all settled p50 / p99 / max |\n"
        "|---|---|---|---|\n"
        "| primary | 1 | - / - / - | - / - / - |\n"
        "| order | 2 | 3.0 / - / 3.0 | 2.0 / - / 2.0 |\n"
        "| payment | 0 | - / - / - | - / - / - |\n"
        f"| {PAUSED} | 1 | 9.0 / - / 9.0 | 9.5 / - / 9.5 |\n"
    )
    assert "3 of 3 kills and pauses: all were hit. 8 orders/s" in shown
    assert "60 s, at a load average of 7.5 on 2 cores" in shown


def test_a_p99_is_shown_for_a_hundred_hits(capsys: pytest.CaptureFixture[str]) -> None:
    lines = kills.rows([hit("order", float(number), 0.0) for number in range(200)], kinds(2, "order"))
    assert [line["recovery"] for line in lines if line["kind"] == "order"] == [{"p50": 100, "p99": 198, "max": 199}]
    assert "| order | 200 | 100.0 / 198.0 / 199.0 | 0.0 / 0.0 / 0.0 |" in printed(lines, capsys)


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

    async def whole(self) -> None:
        pass


class WithoutPrimary(PartlyAway):
    """A cluster that elects its primary when it is asked for the first time."""

    elections = 0

    async def primary(self) -> str:
        self.elections += 1
        if self.elections == 1:
            raise LookupError("the replica set has no primary")
        return await super().primary()


class Parted(PartlyAway):
    """A cluster of which all nodes run, and one does not see the others."""

    async def whole(self) -> None:
        raise TimeoutError("the cluster is not whole after 90 s: rabbitmq-2 and the others do not see each other")


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
    victims = await chosen(PartlyAway("rabbitmq-2", "mongodb", "order-2"), list(kinds(2)), 5)
    assert not {victim.process for victim in victims} & {*BROKER_NODES, *MEMBERS, "order", "order-2"}


async def test_it_ends_if_nothing_comes_back() -> None:
    victims = Victims(cast("Cluster", PartlyAway("mongodb")), kinds(1, "primary, member"), 1)
    with pytest.raises(TimeoutError, match=r"none of these may be killed for 0\.05 s: member, primary"):
        await victims.next(0.05)


async def test_an_election_is_waited_for() -> None:
    assert [victim.process for victim in await chosen(WithoutPrimary(), list(kinds(2, "primary")), 1)] == ["mongodb-2"]


async def test_no_node_dies_while_another_one_is_parted() -> None:
    with pytest.raises(TimeoutError, match="do not see each other"):
        await chosen(Parted(), list(kinds(2, "broker node")), 1)
    assert await chosen(Parted(), list(kinds(2, "primary")), 1)


async def test_a_soak_says_what_ended_it() -> None:
    cluster = cast("Cluster", Parted())
    victims = Victims(cluster, kinds(2, "broker node"), 1)
    soak = kills.Soak(cluster, cast("Clients", None), cast("kills.Records", None), victims)
    assert "do not see each other" in await soak.run(3, 60)
    assert await soak.run(3, -1) == kills.TIME_OVER
    assert await soak.run(0, 60) == kills.DONE


async def test_each_round_has_every_kind() -> None:
    found = kinds(2)
    size = sum(kind.times for kind in found)
    assert size == 18
    victims = await chosen(PartlyAway(), list(found), 2 * size)
    assert Counter(victim.kind for victim in victims) == {kind.title: 2 * kind.times for kind in found}


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
