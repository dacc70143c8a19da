"""The short forms that tests have in the suite, and the long ones that `make test-seeds` runs.

One variable decides: the number of seeds. Tests that last some time, or repeat something, take their long form with it.
"""

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

VARIABLE = "ORDERSAGA_TEST_SEEDS"
SHORT = 30
SEEDS = int(os.environ.get(VARIABLE, SHORT))
IS_LONG_FORM = SEEDS > SHORT

Test = TypeVar("Test", bound=Callable[..., object])


def seed_count(cost: int = 1) -> int:
    """Return the number of seeds for a test that takes `cost` times as long per seed as a quick one."""
    return max(1, SEEDS // cost)


def seeded(cost: int = 1) -> Callable[[Test], Test]:
    """Run a test once for each `seed`; `make test-seeds` finds it by its mark."""

    def decorate(test: Test) -> Test:
        decorated: Test = pytest.mark.long_form(pytest.mark.parametrize("seed", range(seed_count(cost)))(test))
        return decorated

    return decorate
