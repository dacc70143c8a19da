"""`eventually` itself: what it returns, how long it waits, what it says when it gives up."""

import pytest

from tests.support.eventually import NotWithinError, eventually


async def test_it_returns_the_value_of_the_condition() -> None:
    assert await eventually(lambda: "found") == "found"


async def test_it_waits_until_an_async_condition_holds() -> None:
    answers = iter([None, 0, "third"])

    async def condition() -> object:
        return next(answers)

    assert await eventually(condition, within=5) == "third"


async def test_an_exception_counts_as_not_yet() -> None:
    attempts = iter([ConnectionError("down"), ConnectionError("down"), "up"])

    def condition() -> object:
        result = next(attempts)
        if isinstance(result, Exception):
            raise result
        return result

    assert await eventually(condition, within=5) == "up"


async def test_it_says_what_the_condition_was_at_last() -> None:
    with pytest.raises(NotWithinError, match=r"waited 0\.05 s for the third order; at last it was 2"):
        await eventually(_false_two, within=0.05, message="the third order")


async def test_it_says_what_was_raised_at_last() -> None:
    def condition() -> None:
        raise ConnectionError("down")

    with pytest.raises(NotWithinError, match=r"raised ConnectionError\('down'\)"):
        await eventually(condition, within=0.05)


class _FalseTwo(int):
    """Two, and false: a value that the message can show."""

    def __bool__(self) -> bool:
        return False


def _false_two() -> int:
    return _FalseTwo(2)
