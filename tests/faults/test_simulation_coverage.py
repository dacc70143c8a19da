"""Seeds meet every reachable row of the saga, every failpoint, every answer and every decision about a job."""

from pathlib import Path

import pytest

from simulation import plan, world
from simulation.coverage import (
    ANSWERS,
    DECISIONS,
    FAILPOINTS,
    KILLED_AT,
    ROWS,
    UNREACHABLE_DECISIONS,
    UNREACHABLE_ROWS,
    Met,
)
from simulation.runner import run_seeds
from tests.support.seeds import IS_LONG_FORM

CHOSEN = (0,)
"""Seeds that meet all of it together. When plans are drawn in another way, choose others: of the first thousand seeds,
those whose faults are at the failpoints that are missing; then of all others each that meets what is still missing.
"""
DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_the_chosen_seeds_meet_all_that_can_be_met() -> None:
    met = Met()
    for seed in CHOSEN:
        outcome = world.run(plan.draw(seed))
        assert outcome.violations == (), seed
        met.add(outcome.met)
    assert {kind: missing for kind, missing in met.missing().items() if missing} == {}
    assert_nothing_unexpected(met)


@pytest.mark.long_form
@pytest.mark.skipif(not IS_LONG_FORM, reason="the first thousand seeds take some minutes")
def test_the_first_thousand_seeds_meet_all_that_can_be_met() -> None:
    summary = run_seeds(range(1000))
    assert not summary.failed
    assert {kind: missing for kind, missing in summary.met.missing().items() if missing} == {}
    assert_nothing_unexpected(summary.met)


def assert_nothing_unexpected(met: Met) -> None:
    """What counts as unreachable is not met, and nothing is met that is not listed."""
    assert met.rows <= ROWS
    assert met.answers <= ANSWERS
    assert met.failpoints <= FAILPOINTS
    assert not met.decisions & UNREACHABLE_DECISIONS.keys()


def test_the_documentation_says_what_cannot_be_met() -> None:
    text = DOCS.read_text()
    for status, event in UNREACHABLE_ROWS:
        assert f"`{event}` in {status}" in text
    for decision in UNREACHABLE_DECISIONS:
        assert f"`{decision}`" in text


def test_what_was_never_met_is_named() -> None:
    met = Met(failpoints=set(FAILPOINTS), rows=set(ROWS), answers=set(ANSWERS), decisions=set(DECISIONS))
    met.rows.discard(("FAILED", "RetryRequested"))
    met.answers.discard(("payment, payment.refund", "no answer"))
    met.crashed_at |= FAILPOINTS - {"order.inserted"}
    assert {kind: missing for kind, missing in met.missing().items() if missing} == {
        KILLED_AT: ["order.inserted"],
        "rows": ["RetryRequested in FAILED"],
        "answers": ["no answer to payment, payment.refund"],
    }
