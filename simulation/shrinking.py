"""Shrinks a plan that fails to the fewest orders and faults with which it still fails in the same way."""

from collections.abc import Callable, Sequence

from simulation.plan import Plan
from simulation.world import Outcome

MOST_RUNS = 200


def kind_of(violation: str) -> str:
    """Return what a violation is about, without the records that it names: `invariant 2, charges` or `stock`."""
    return ":".join(violation.split(":")[:1])


def fails_alike(outcome: Outcome, kinds: set[str]) -> bool:
    """Return whether a violation of one of these kinds was found."""
    return any(kind_of(violation) in kinds for violation in outcome.violations)


def shrink(failed: Outcome, run: Callable[[Plan], Outcome], most_runs: int = MOST_RUNS) -> Outcome:
    """Return the outcome of the smallest plan that was found; every one of them was run."""
    kinds = {kind_of(violation) for violation in failed.violations}
    smallest, runs = failed, 0

    def still_fails(orders: Sequence[int], faults: Sequence[int]) -> bool:
        nonlocal smallest, runs
        if runs >= most_runs:
            return False
        runs += 1
        outcome = run(failed.plan.keep(orders, faults))
        if fails_alike(outcome, kinds):
            smallest = outcome
            return True
        return False

    orders, faults = failed.plan.numbers
    happened = {fault.number for fault in failed.happened}
    unused_left_out = tuple(number for number in faults if number in happened)
    if unused_left_out != faults and still_fails(orders, unused_left_out):
        faults = unused_left_out
    before = None
    while before != (orders, faults):
        before = orders, faults
        faults = _fewest(faults, lambda kept, orders=orders: still_fails(orders, kept))  # type: ignore[misc]
        orders = _fewest(orders, lambda kept, faults=faults: still_fails(kept, faults))  # type: ignore[misc]
    return smallest


def _fewest(numbers: tuple[int, ...], still_fails: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """Leave out halves, then quarters, in the end single numbers, as long as what is left still fails."""
    size = max(1, len(numbers) // 2)
    while numbers:
        start = 0
        while start < len(numbers):
            kept = numbers[:start] + numbers[start + size :]
            if still_fails(kept):
                numbers = kept
            else:
                start += size
        if size == 1:
            break
        size //= 2
    return numbers
