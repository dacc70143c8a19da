"""The plan of a run of chaos, what its faults may hit, and its report."""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from chaos.catalogue import catalogue, choose
from chaos.clients import Availability
from chaos.fault import Fault, Injected
from chaos.process_faults import process_faults
from chaos.report import Ending, Hit, Result
from chaos.rounds import Planned, rounds
from chaos.running import Chaos, ChaosPlan
from chaos.shop import draw
from chaos.stack import ChaosStack
from chaos.verdict import Finding
from operations.audit import Report
from shared.services import SERVICES

NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
MEMBERS = ("mongodb", "mongodb-2", "mongodb-3")
ON_SINGLE_SERVERS, ON_A_CLUSTER = catalogue(cluster=False), catalogue(cluster=True)


def planned(faults: Sequence[Fault], seed: int, number: int) -> list[list[Planned]]:
    return list(islice(rounds(faults, seed), number))


# --- The plan. ---


@pytest.mark.parametrize("faults", [ON_SINGLE_SERVERS, ON_A_CLUSTER], ids=["single", "cluster"])
def test_each_round_has_every_kind_as_often_as_it_weighs(faults: Sequence[Fault]) -> None:
    for each in planned(faults, 1, 3):
        assert Counter(one.fault.name for one in each) == {fault.name: fault.weight for fault in faults}


def test_a_seed_repeats_its_faults_and_what_they_draw() -> None:
    def drawn(seed: int) -> list[tuple[int, str, float]]:
        return [
            (one.number, one.fault.name, one.chance().random())
            for each in planned(ON_A_CLUSTER, seed, 2)
            for one in each
        ]

    assert drawn(1) == drawn(1) != drawn(2)
    assert [number for number, _, _ in drawn(1)] == list(range(1, len(drawn(1)) + 1))


def test_what_a_fault_draws_does_not_depend_on_how_often_it_was_tried() -> None:
    first = planned(ON_A_CLUSTER, 1, 1)[0][0]
    assert first.chance().random() == first.chance().random()


def test_names_are_unique_and_kinds_are_chosen_by_them() -> None:
    for faults in (ON_SINGLE_SERVERS, ON_A_CLUSTER):
        assert len({fault.name for fault in faults}) == len({fault.title for fault in faults}) == len(faults)
    assert [fault.name for fault in choose(ON_A_CLUSTER, "queue-purged, primary-killed")] == [
        "primary-killed",
        "queue-purged",
    ]
    assert choose(ON_A_CLUSTER, "") == ON_A_CLUSTER
    with pytest.raises(ValueError, match="'nobody' is none of broker-disk-low, clock-jumped, "):
        choose(ON_A_CLUSTER, "nobody")


def test_clients_do_all_that_there_is() -> None:
    visits = [draw(1, number, ["r1", "r2"]) for number in range(1000)]
    assert [draw(1, number, ["r1", "r2"]) for number in range(1000)] == visits
    assert {visit.afterwards for visit in visits} == {
        "nothing",
        "cancel",
        "deliver",
        "refund",
        "refund units",
        "refund all",
        "deliver and refund",
    }
    orders = [visit.body for visit in visits if visit.what == "order"]
    assert len(visits) - len(orders) == 80
    assert sum("delivery" in body for body in orders) == 200
    assert sum(body["payment"].get("method") == "retainer" for body in orders) == 300
    assert sum(body["payment"].get("token") == "tok_declined" for body in orders) == 100
    assert sum(body["items"][0]["productId"].startswith("server-") for body in orders) == 20
    assert any(visit.repeats for visit in visits)
    assert any(visit.is_held_first for visit in visits)


# --- What may be hit. ---


class FakeProcess:
    """A process that remembers what happened to it."""

    def __init__(self, happened: list[str], name: str) -> None:
        self._happened = happened
        self._name = name

    def kill(self) -> None:
        self._happened.append(f"kill {self._name}")

    def suspend(self) -> None:
        self._happened.append(f"stop {self._name}")

    def resume(self) -> None:
        self._happened.append(f"continue {self._name}")


class FakeStack:
    """A cluster with two processes of each service, of which some are away."""

    nodes, members, is_cluster = NODES, MEMBERS, True
    spare_one = ChaosStack.spare_one

    def __init__(self, *away: str) -> None:
        self.away = set(away)
        self.astray = False
        self.happened: list[str] = []

    def processes_of(self, service: str) -> list[str]:
        return [service, f"{service}-2"]

    def require(self, names: Collection[str]) -> None:
        if self.away & set(names):
            raise LookupError("away")

    async def whole(self) -> None:
        pass

    async def require_followers(self) -> None:
        if self.astray:
            raise LookupError("members that do not follow")

    async def leader(self, _queue: str) -> str:
        return "rabbitmq-3"

    async def primary(self) -> str:
        return "mongodb-2"

    def find(self, name: str) -> FakeProcess:
        return FakeProcess(self.happened, name)

    def supervisor(self) -> FakeProcess:
        return self.find("supervisor")

    def send(self, name: str, number: signal.Signals) -> None:
        self.happened.append(f"{number.name} {name}")

    async def restart(self, name: str) -> None:
        self.happened.append(f"restart {name}")


async def struck(name: str, stack: FakeStack, number: int = 0) -> Injected:
    fault = next(fault for fault in process_faults(cluster=True) if fault.name == name)
    return await fault.strike(cast("ChaosStack", stack), random.Random(number))


async def test_every_process_is_hit_at_some_time() -> None:
    stack = FakeStack()
    for number, fault in enumerate([*process_faults(cluster=True)] * 40):
        await fault.strike(cast("ChaosStack", stack), random.Random(number))
    hit = {what.split()[1] for what in stack.happened}
    assert hit == {"supervisor", *NODES, *MEMBERS, *SERVICES, *(f"{service}-2" for service in SERVICES)}


@pytest.mark.parametrize(
    ("name", "away"),
    [
        ("node-killed", "rabbitmq-2"),
        ("leader-killed", "rabbitmq"),
        ("primary-killed", "mongodb-3"),
        ("member-paused", "mongodb"),
        ("order-killed", "order-2"),
        ("payment-killed", "payment"),
    ],
)
async def test_nothing_is_hit_that_the_others_could_not_spare(name: str, away: str) -> None:
    stack = FakeStack(away)
    with pytest.raises(LookupError):
        await struck(name, stack)
    assert stack.happened == []


@pytest.mark.parametrize("name", ["primary-killed", "member-killed", "member-paused"])
async def test_no_member_is_hit_while_another_one_does_not_follow_the_primary(name: str) -> None:
    stack = FakeStack()
    stack.astray = True
    with pytest.raises(LookupError):
        await struck(name, stack)
    assert stack.happened == []


async def test_a_pause_ends_once_and_a_node_that_was_given_up_is_restarted_by_an_operator() -> None:
    stack = FakeStack()
    pauses = [await struck("node-paused", stack, number) for number in range(20)]
    assert {pause.duty is not None for pause in pauses} == {True, False}
    assert all((pause.duty is not None) == (pause.seconds > 3) for pause in pauses)
    stack.happened.clear()
    given_up = next(pause for pause in pauses if pause.duty is not None)
    await given_up.repair()
    await given_up.repair()
    assert given_up.duty is not None
    await given_up.duty()
    name = given_up.what.split(",")[0]
    assert stack.happened == [f"continue {name}", f"restart {name}"]
    assert given_up.told == f"restarted {name} (docs/clusters.md)"


async def test_a_server_that_is_lost_is_kept_away_by_a_supervisor_that_stands_still_or_stands_still_itself() -> None:
    ways = set()
    for number in range(20):
        stack = FakeStack()
        lost = await struck("server-lost", stack, number)
        assert 20 <= lost.seconds <= 40
        await lost.repair()
        ways.add(tuple(what.split()[0] for what in stack.happened))
        if "kill" in stack.happened[1]:
            assert stack.happened[0] == "stop supervisor"
    assert ways == {("stop", "kill", "continue"), ("stop", "continue")}


class OneKind:
    """A kind of faults that can be had at the third attempt."""

    name, title, weight = "one", "one", 1

    def __init__(self) -> None:
        self.attempts: list[float] = []

    def missing(self) -> str | None:
        return None

    async def strike(self, _stack: ChaosStack, chance: random.Random) -> Injected:
        self.attempts.append(chance.random())
        if len(self.attempts) < 3:
            raise LookupError("it is away")
        return Injected("it")


class SettledAtOnce:
    """A database and clients without any order that waits."""

    async def probe(self, *, of_server: bool) -> None:
        return None

    async def wait_until_settled(self, before: float, within: float = 1.0) -> bool:
        return True


def chaos_over(database: object) -> Chaos:

    return Chaos(
        cast("Any", FakeStack()), cast("Any", database), cast("Any", database), asyncio.Event(), lambda _: None
    )


async def test_a_fault_is_tried_until_it_is_possible_with_the_same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.running.CHECK_SECONDS", 0.0)
    kind, chaos = OneKind(), chaos_over(SettledAtOnce())
    ending = await chaos.let_happen(ChaosPlan([kind], seed=1, most=1, seconds=60, rate=1))
    assert ending == Ending("all happened", is_whole=True)
    assert len(kind.attempts) == 3
    assert len(set(kind.attempts)) == 1
    assert [hit.what for hit in chaos.hits] == ["it"]


async def test_a_run_says_what_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.running.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("chaos.running.BACK_WITHIN", 0.05)

    class Never(OneKind):
        async def strike(self, _stack: ChaosStack, chance: random.Random) -> Injected:
            raise LookupError("it is away")

    plan = ChaosPlan([Never()], seed=1, most=1, seconds=60, rate=1)
    chaos = chaos_over(SettledAtOnce())
    assert await chaos.let_happen(plan) == Ending("no fault was possible for 0.05 s: it is away", is_whole=False)
    over = ChaosPlan([OneKind()], seed=1, most=1, seconds=-1, rate=1)
    assert await chaos.let_happen(over) == Ending("the minutes were over", is_whole=True)


async def test_an_interruption_ends_a_run_while_it_waits_for_a_fault_to_be_possible() -> None:
    stop = asyncio.Event()

    class Interrupted(OneKind):
        async def strike(self, _stack: ChaosStack, chance: random.Random) -> Injected:
            stop.set()
            raise LookupError("it is away")

    chaos = Chaos(
        cast("Any", FakeStack()), cast("Any", SettledAtOnce()), cast("Any", SettledAtOnce()), stop, lambda _: None
    )
    plan = ChaosPlan([Interrupted()], seed=1, most=1, seconds=60, rate=1)
    assert await chaos.let_happen(plan) == Ending("interrupted", is_whole=True)


async def test_a_victim_that_has_just_ended_is_no_victim_and_the_supervisor_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(_process: FakeProcess) -> None:
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(FakeProcess, "kill", ended)
    ways = set()
    for number in range(10):
        stack = FakeStack()
        with contextlib.suppress(LookupError):
            lost = await struck("server-lost", stack, number)
            await lost.repair()
        ways.add(tuple(what.split()[0] for what in stack.happened))
    assert ways == {("stop", "continue")}


# --- The report. ---


def hit(number: int, name: str, recovery: float | None, settled: float | None, lasted: float = 0.0) -> Hit:
    return Hit(number, name, f"kill of {name}", "order-2", 0.0, lasted, recovery, recovery, settled)


def result(hits: Sequence[Hit], **other: Any) -> Result:
    given: dict[str, Any] = {
        "seed": 1,
        "cluster": True,
        "rate": 8.0,
        "asked": 3,
        "ending": Ending("all happened", is_whole=True),
        "hits": hits,
        "findings": [],
        "books": Report(),
        "accepted": 10,
        "audited": 10,
        "replayed": 0,
        "open_letters": 0,
        "away": [],
        "availability": Availability(1000, 999, [1.0, 2.5, 2.0]),
        "seconds": 60.0,
        "load_average": 7.5,
        "journal": Path("answers.jsonl"),
    }
    return Result(**given | other)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, True),
        ({"ending": Ending("the minutes were over", is_whole=True)}, True),
        ({"ending": Ending("interrupted", is_whole=True)}, True),
        ({"ending": Ending("no fault was possible", is_whole=False)}, False),
        ({"hits": []}, False),
        ({"hits": [hit(1, "order", 1.0, None)]}, False),
        ({"findings": [Finding("lost", "order o1")]}, False),
        ({"books": Report(unlisted=1)}, False),
        ({"open_letters": 1}, False),
        ({"replayed": 1}, True),
        ({"away": ["rabbitmq-2"]}, False),
    ],
)
def test_all_is_well_only_if_nothing_is_wrong(other: dict[str, Any], expected: bool) -> None:
    assert result([hit(1, "order", 1.0, 1.0)]).ok
    assert result(**{"hits": [hit(1, "order", 1.0, 1.0)]} | other).ok is expected


def test_the_table_has_a_line_for_each_kind_and_one_for_all() -> None:
    hits = [
        hit(1, "order", 1.0, 2.0),
        hit(2, "primary", None, None),
        hit(3, "order", 3.0, 4.0),
        hit(4, "payment", 9.0, 9.5, lasted=6.0),
    ]
    lines = list(result(hits).lines())
    assert lines[:6] == [
        "| fault | times | recovery p50 / p99 / max | from its beginning | all settled | never |",
        "|---|---|---|---|---|---|",
        "| kill of order | 2 | 1.0 / - / 3.0 | 1.0 / - / 3.0 | 2.0 / - / 4.0 | 0 |",
        "| kill of payment* | 1 | 9.0 / - / 9.0 | 9.0 / - / 9.0 | 9.5 / - / 9.5 | 0 |",
        "| kill of primary | 1 | - / - / - | - / - / - | - / - / - | 1 |",
        "| all | 4 | 3.0 / - / 9.0 | 3.0 / - / 9.0 | 4.0 / - / 9.5 | 1 |",
    ]
    shown = "\n".join(lines)
    assert "4 of 3 faults: all happened. 8 clients/s for 60 s, at a load average of 7.5 on" in shown
    assert "99.90% of 1,000 requests were answered at the first attempt" in shown
    assert "without an accepted order was 1.0 s" in shown
    assert "✓" not in shown


def test_a_p99_is_shown_from_a_hundred_faults_on() -> None:
    lines = list(result([hit(number, "order", float(number), 0.0) for number in range(1, 201)]).lines())
    assert lines[2] == "| kill of order | 200 | 100.0 / 198.0 / 200.0 | 100.0 / 198.0 / 200.0 | 0.0 / 0.0 / 0.0 | 0 |"
    assert lines[-1] == "✓ Nothing is lost, doubled or changed, and the books balance"


def test_what_is_wrong_and_what_was_left_out_is_named() -> None:
    found = [Finding("lost", f"order {number}") for number in range(25)]
    other: dict[str, Any] = {"findings": found, "away": ["rabbitmq-2"], "left_out": {"a partition": "needs root"}}
    shown = "\n".join(result([hit(1, "order", 1.0, 1.0)], **other).lines())
    for words in (
        "✗ lost: order 0\n",
        "✗ and 5 more",
        "✗ not back: rabbitmq-2",
        "left out: a partition: needs root",
        "answers.jsonl",
    ):
        assert words in shown


def test_the_json_says_from_where_each_recovery_was_measured() -> None:
    document = result([hit(1, "order", 1.0, 2.0), hit(2, "order", 1.0, None, lasted=3.0)]).as_json()
    assert not document["ok"]
    assert [(each["number"], each["measuredFrom"], each["allSettledSeconds"]) for each in document["hits"]] == [
        (1, "strike", 2.0),
        (2, "repair", None),
    ]
    assert document["availability"]["longestGapSeconds"] == 1.0


def test_a_fault_that_is_interrupted_at_once_has_not_lasted() -> None:
    (shown,) = result([hit(1, "order", 1.0, 2.0, lasted=0.0004)]).as_json()["hits"]
    assert (shown["measuredFrom"], shown["lastedSeconds"]) == ("strike", 0.0)
