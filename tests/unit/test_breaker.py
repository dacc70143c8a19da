"""When the breaker of a consumer opens, tests and closes."""

from collections import Counter
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from shared.bus.breaker import COUNTED_FOR_SECONDS, FIRST_TEST_SECONDS, LONGEST_TEST_SECONDS, Batch, Breaker, cause_of
from shared.bus.consumer import _Outcome

AFTER = 3


def failing(*messages: str, cause: str = "KeyError") -> Batch:
    return Batch(handled=False, causes=frozenset({cause}), failed=frozenset(messages))


HANDLED = Batch(handled=True)
POISON = Batch(handled=False)
MIXED = Batch(handled=True, causes=frozenset({"KeyError"}), failed=frozenset({"m"}))


def after(*batches: Batch, opens_after: int = AFTER) -> Breaker:
    breaker = Breaker(opens_after)
    for number, batch in enumerate(batches):
        breaker = breaker.after(batch, float(number))
    return breaker


def test_batches_in_a_row_that_fail_for_one_cause_open_it() -> None:
    assert not after(failing("a"), failing("b")).is_open
    opened = after(failing("a"), failing("b"), failing("c"))
    assert opened.is_open
    assert opened.test_at == 2 + FIRST_TEST_SECONDS


def test_large_batches_count_as_small_ones() -> None:
    assert not after(failing("a", "b", "c", "d"), failing("a", "b", "c", "d")).is_open
    assert after(*[failing("a", "b", "c", "d")] * AFTER).is_open


def test_one_message_that_is_retried_again_and_again_opens_nothing() -> None:
    assert not after(*[failing("a")] * 20).is_open


def test_poison_among_good_messages_opens_nothing() -> None:
    assert not after(*[Batch(handled=True)] * 20).is_open
    assert not after(*[POISON] * 20).is_open


def test_a_success_in_between_begins_the_count_again() -> None:
    assert not after(failing("a"), failing("b"), HANDLED, failing("c"), failing("d")).is_open
    assert not after(failing("a"), failing("b"), MIXED, failing("c"), failing("d")).is_open


def test_poison_in_between_does_not_interrupt_the_count() -> None:
    assert after(failing("a"), POISON, failing("b"), POISON, failing("c")).is_open


def test_several_causes_open_nothing() -> None:
    assert not after(failing("a"), failing("b", cause="ValueError"), failing("c"), failing("d", cause="E")).is_open
    both = Batch(handled=False, causes=frozenset({"A", "B"}), failed=frozenset({"m1", "m2"}))
    assert not after(*[both] * 20).is_open


def test_failures_that_are_far_apart_open_nothing() -> None:
    breaker = Breaker(AFTER)
    for number in range(20):
        breaker = breaker.after(failing(f"m{number}"), number * COUNTED_FOR_SECONDS * 0.6)
        assert not breaker.is_open
    last = 19 * COUNTED_FOR_SECONDS * 0.6
    assert breaker.after(failing("a"), last).after(failing("b"), last).is_open


@given(st.lists(st.floats(0, COUNTED_FOR_SECONDS), min_size=AFTER, max_size=AFTER))
def test_failures_within_its_time_open_it(moments: list[float]) -> None:
    breaker = Breaker(AFTER)
    for number, moment in enumerate(sorted(moments)):
        breaker = breaker.after(failing(f"m{number}"), 1e6 + moment)
    assert breaker.is_open


def test_the_news_of_pauses_prove_nothing_about_the_other_messages() -> None:
    of_news = _Outcome(cast("Any", None), handled=Counter({"consumer.pauses_changed": 3}))
    assert of_news.of_breaker() == POISON
    of_both = _Outcome(cast("Any", None), handled=Counter({"consumer.pauses_changed": 1, "payment.processed": 1}))
    assert of_both.of_breaker() == HANDLED
    assert after(failing("a"), of_news.of_breaker(), failing("b"), of_news.of_breaker(), failing("c")).is_open


def test_zero_turns_it_off() -> None:
    assert not after(*[failing("a", "b", "c")] * 20, opens_after=0).is_open


@given(st.lists(st.sampled_from(["same", "other", "poison"]), max_size=30))
def test_tests_come_ever_more_rarely_until_one_succeeds(results: list[str]) -> None:
    breaker, now = after(failing("a"), failing("b"), failing("c")), 2.0
    pauses = [breaker.test_at - now]
    for result in results:
        now = max(now, breaker.test_at)
        batch = POISON if result == "poison" else failing("d", cause="KeyError" if result == "same" else "ValueError")
        breaker = breaker.after(batch, now)
        assert breaker.is_open
        if result != "poison":
            pauses.append(breaker.test_at - now)
    assert pauses == sorted(pauses)
    assert all(FIRST_TEST_SECONDS <= pause <= LONGEST_TEST_SECONDS for pause in pauses)
    assert breaker.after(HANDLED, now) == Breaker(AFTER)


def test_the_cause_of_failures_does_not_depend_on_ids_and_values() -> None:
    one = cause_of(RuntimeError("order 5f21 has no price"))
    assert one == cause_of(RuntimeError("order 77aa has no price"))
    assert one != cause_of(ValueError("order 5f21 has no price"))
    assert one != cause_of(RuntimeError("order 5f21 has no currency"))


def test_the_words_for_readiness_name_neither_the_error_nor_its_text() -> None:
    opened = after(*[failing(name, cause="KeyError: secret of #") for name in "abc"])
    why = "3 batches in a row failed for one cause, which the log names"
    assert opened.in_words(12.0) == f"open for 10 s: {why}; 0 tests failed"
    assert Breaker(AFTER).in_words(0) is None
