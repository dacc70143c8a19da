"""What a provisioning job says in words."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from operations.jobs.search import OPEN_STATES, JobSearch, query_of, states_of
from operations.jobs.wording import attempts_in_words, last_error, next_attempt_at, what_next
from provisioning_service.job import State

NOW = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)


def a_job(state: State, **fields: Any) -> dict[str, Any]:
    return {"_id": "o", "state": str(state), "step": "buy", "package": "103.181.9", "createdAt": NOW} | fields


def attempt(outcome: str, detail: str, minutes: float = 1) -> dict[str, Any]:
    return {"step": "buy", "at": NOW + timedelta(minutes=minutes), "outcome": outcome, "detail": detail}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (a_job(State.QUEUED), None),
        (a_job(State.WAITING, attempts=[attempt("failed", "502"), attempt("ok", "fine", 2)]), "Buy: 502"),
        (
            a_job(State.WAITING, attempts=[attempt("failed", "502"), attempt("unknown", "no answer", 2)]),
            "Buy: no answer",
        ),
        (a_job(State.RUNNING, purchase={"trouble": "timed out"}), "Buy: timed out"),
        (a_job(State.FAILED, failureReason="no IPs", attempts=[attempt("failed", "502")]), "no IPs"),
        # What went wrong before the server was bought, or in an earlier run, is over.
        (a_job(State.COMPLETED, attempts=[attempt("failed", "502")]), None),
        (a_job(State.QUEUED, requestedAt=NOW + timedelta(hours=1), attempts=[attempt("failed", "502")]), None),
    ],
)
def test_the_last_error_is_that_of_the_present_run(job: dict[str, Any], words: str | None) -> None:
    assert last_error(job) == words


def test_attempts_are_those_to_buy_and_those_for_credentials() -> None:
    assert attempts_in_words(a_job(State.QUEUED)) == "none"
    assert attempts_in_words(a_job(State.RUNNING, buys=2)) == "2 to buy"
    assert attempts_in_words(a_job(State.COMPLETED, buys=1, looks=3)) == "1 to buy, 3 for credentials"


def test_every_state_says_what_comes_next() -> None:
    assert {state: what_next(a_job(state, retryable=True)) for state in State} == {
        State.QUEUED: "its turn for package 103.181.9",
        State.RUNNING: "now: Buy",
        State.WAITING: "next attempt",
        State.COMPLETED: "nothing: it is done",
        State.FAILED: "a decision: retry or refund",
    }
    assert what_next(a_job(State.FAILED)) == "nothing by itself"
    assert next_attempt_at(a_job(State.WAITING, dueAt=NOW)) == NOW
    # A worker's claim runs out then, which is no attempt.
    assert next_attempt_at(a_job(State.RUNNING, dueAt=NOW)) is None


def test_a_search_names_the_states_for_its_index() -> None:
    assert query_of(JobSearch())["state"] == {"$in": [str(state) for state in State]}
    assert states_of("open") == OPEN_STATES == (State.QUEUED, State.RUNNING, State.WAITING)
    assert (states_of("FAILED"), states_of("")) == ((State.FAILED,), ())
    with pytest.raises(ValueError, match="LOST"):
        states_of("LOST")
    asked = query_of(JobSearch(package="103.181.9.x", order_id="a1", since=NOW))
    assert asked["lockKey"] == "103.181.9"
    assert asked["_id"]["$gte"] == "a1"
    assert asked["createdAt"] == {"$gte": NOW}
