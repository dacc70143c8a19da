"""What an observation of the stack means: each change once, no flood, and the truth in the end."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.incidents.changes import (
    CALM,
    FAMILIES,
    MOST_CHANGES,
    Known,
    Release,
    Seen,
    decide,
    decide_release,
)
from operations.incidents.facts import ended_bulk, new_groups
from operations.incidents.incident import INFO, KINDS, Incident

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PAYMENT = Seen("service/payment", "down", "it refuses connections", "payment", "/runbooks/service-down")


def up(seen: Seen = PAYMENT) -> Seen:
    return seen._replace(state="up", why="", link=None)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Seen, datetime]]:
    """What was seen of one subject, in order."""
    states = draw(st.lists(st.sampled_from(["up", "down", "not ready"]), max_size=60))
    at, seen = NOW, []
    for state in states:
        at += timedelta(seconds=draw(st.sampled_from([5, 5, 5, 60, 300, 900])))
        seen.append((Seen("service/payment", state, "x", "payment"), at))
    return seen


def told(history: list[tuple[Seen, datetime]]) -> tuple[Known | None, list[Incident]]:
    known: Known | None = None
    incidents: list[Incident] = []
    for seen, at in history:
        known, new = decide(known, seen, at)
        incidents += new
    return known, incidents


def test_a_process_that_goes_and_comes_back_is_two_incidents() -> None:
    down = decide(None, PAYMENT, NOW)
    assert [(i.kind, i.severity, i.text, i.service, i.link) for i in down.incidents] == [
        (
            "process-down",
            "critical",
            "The payment service does not answer: it refuses connections",
            "payment",
            "/runbooks/service-down",
        )
    ]
    back = decide(down.known, up(), NOW + SECOND)
    assert [(i.kind, i.text) for i in back.incidents] == [("process-back", "The payment service works again")]


def test_what_is_as_it_should_be_at_first_is_no_incident() -> None:
    assert decide(None, up(), NOW).incidents == ()
    assert decide(None, Seen("primary/MongoDB", "a:1"), NOW).incidents == ()


def test_another_primary_is_a_failover() -> None:
    known = decide(None, Seen("primary/MongoDB", "a:1"), NOW).known
    (failover,) = decide(known, Seen("primary/MongoDB", "b:1"), NOW + SECOND).incidents
    assert (failover.kind, failover.text) == ("failover", "MongoDB has another primary: b:1, after a:1")


def test_what_was_seen_before_the_last_change_is_ignored() -> None:
    known = decide(Known("down"), up(), NOW).known
    assert decide(known, PAYMENT, NOW) == (known, ())
    assert decide(known, PAYMENT, NOW - SECOND) == (known, ())


@given(histories())
def test_the_same_twice_changes_nothing(history: list[tuple[Seen, datetime]]) -> None:
    known, _ = told(history)
    if history:
        seen, at = history[-1]
        assert decide(known, seen, at) == (known, ())


@given(histories())
def test_no_subject_floods_the_list(history: list[tuple[Seen, datetime]]) -> None:
    _, incidents = told(history)
    for first in incidents:
        close = [each for each in incidents if timedelta() <= each.at - first.at < CALM]
        assert len(close) <= MOST_CHANGES + 2, [each.kind for each in close]


@given(histories())
def test_in_the_end_the_list_tells_the_truth(history: list[tuple[Seen, datetime]]) -> None:
    if not history:
        return
    last, at = history[-1]
    _, incidents = told([*history, (last, at + CALM)])
    if incidents:
        assert incidents[-1].kind == FAMILIES["service"].words[last.state].kind
    else:
        assert last.state == "up"


@given(histories())
def test_every_incident_has_an_id_of_its_own(history: list[tuple[Seen, datetime]]) -> None:
    _, incidents = told(history)
    assert len({incident.id for incident in incidents}) == len(incidents)


def test_flapping_is_said_once_and_so_is_its_end() -> None:
    history = [(up() if number % 2 else PAYMENT, NOW + number * SECOND) for number in range(100)]
    known, incidents = told(history)
    assert [each.kind for each in incidents] == ["process-down", "process-back"] * 2 + ["flapping"]
    calm = decide(known, up(), NOW + 99 * SECOND + CALM)
    assert [each.text for each in calm.incidents] == ["No change for 10 minutes: The payment service works again"]
    assert not calm.known.flapping


@pytest.mark.parametrize("family", FAMILIES)
def test_every_state_has_words_of_a_known_kind(family: str) -> None:
    for state, words in FAMILIES[family].words.items():
        assert words.kind in KINDS
        assert words.text.format(name="n", why="w", state="s", before="b")
        assert (state == FAMILIES[family].normal) == (KINDS[words.kind] == INFO)


def test_a_younger_process_is_a_restart_or_a_deployment() -> None:
    first = Release(NOW, "1.0.0")
    assert decide_release(None, first, "order") == (first, ())
    again = Release(NOW + SECOND, "1.0.0")
    known, (restart,) = decide_release(first, again, "order")
    assert (known, restart.kind, restart.at) == (again, "restarted", again.started_at)
    new = Release(NOW + 2 * SECOND, "1.1.0")
    _, (deployment,) = decide_release(again, new, "order")
    assert (deployment.kind, deployment.text) == ("deployed", "The order service runs release 1.1.0, after 1.0.0")


def test_an_older_process_behind_the_same_address_is_no_news() -> None:
    young = Release(NOW, "1.1.0")
    assert decide_release(young, Release(NOW - SECOND, "1.0.0"), "order") == (young, ())


def test_new_groups_of_a_minute_are_one_incident() -> None:
    groups = [
        {"_id": f"g{number}", "since": NOW + number * SECOND, "errorType": "Poison", "service": "payment"}
        for number in range(50)
    ]
    assert new_groups(groups, NOW + timedelta(seconds=100)) == []
    (incident,) = new_groups(groups, NOW + timedelta(minutes=2))
    assert (incident.kind, incident.service, incident.link) == ("dead-letters", "payment", "/dead-letters")
    assert incident.text == "50 new groups of dead letters: Poison in payment, …"
    (alone,) = new_groups(groups[:1], NOW + timedelta(minutes=2))
    assert (alone.text, alone.link) == ("A new group of dead letters: Poison in payment", "/dead-letters/groups/g0")


def test_an_action_on_many_orders_says_how_it_ended() -> None:
    bulk = {"_id": "b1", "action": "cancel", "total": 40, "status": "ended", "endedAt": NOW}
    incident = ended_bulk(bulk, {"failed": 2, "done": 38})
    assert incident.text == "The action cancel on 40 orders has ended: 38 done, 2 failed"
    assert incident.link == "/bulk-actions/results/b1"
    assert ended_bulk(bulk | {"status": "stopped"}, {}).text.endswith("has been stopped: none acted on")
