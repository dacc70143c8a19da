"""The queue of operations: who runs together, who waits, and that nobody is overtaken or forgotten."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from payment_service.ledger.operation_queue import MOST_DOCUMENTS, Group, OperationQueue
from payment_service.ledger.unit_of_work import Reference


@dataclass(eq=False)
class Operation:
    """An operation of a test."""

    number: int
    touches: tuple[Reference, ...]
    largest_group: int = 100
    turns: list[int] = field(default_factory=list)


def operation(number: int, accounts: str, largest_group: int = 100) -> Operation:
    return Operation(number, tuple(Reference("accounts", name) for name in accounts), largest_group)


def queue_of(*operations: Operation) -> OperationQueue[Operation]:
    queue: OperationQueue[Operation] = OperationQueue()
    for each in operations:
        queue.add(each)
    return queue


def numbers(groups: list[Group[Operation]]) -> list[list[int]]:
    return [[each.number for each in group.operations] for group in groups]


def test_operations_on_one_account_form_one_group() -> None:
    assert numbers(queue_of(*(operation(n, "a") for n in range(5))).start()) == [[0, 1, 2, 3, 4]]


def test_operations_on_different_accounts_run_on_their_own() -> None:
    assert numbers(queue_of(operation(0, "a"), operation(1, "b"), operation(2, "")).start()) == [[0], [1], [2]]


def test_an_operation_on_two_accounts_joins_their_groups() -> None:
    queue = queue_of(operation(0, "a"), operation(1, "b"), operation(2, "c"), operation(3, "ab"), operation(4, "b"))
    assert numbers(queue.start()) == [[0, 1, 3, 4], [2]]


def test_what_arrives_while_a_group_runs_waits_for_its_end() -> None:
    queue = queue_of(operation(0, "a"))
    (running,) = queue.start()
    for each in (operation(1, "a"), operation(2, "b"), operation(3, "a")):
        queue.add(each)
    assert numbers(queue.start()) == [[2]]
    queue.finish(running)
    assert numbers(queue.start()) == [[1, 3]]


def test_nobody_is_overtaken_by_an_operation_that_could_run_now() -> None:
    """Else a transfer might wait for ever while one of its accounts is busy."""
    queue = queue_of(operation(0, "a"))
    (running,) = queue.start()
    queue.add(operation(1, "ab"))
    queue.add(operation(2, "b"))
    assert queue.start() == []
    queue.finish(running)
    assert numbers(queue.start()) == [[1, 2]]


def test_a_group_has_a_largest_size() -> None:
    queue = queue_of(*(operation(n, "a", 2) for n in range(5)))
    for expected in ([[0, 1]], [[2, 3]], [[4]]):
        groups = queue.start()
        assert numbers(groups) == expected
        queue.finish(groups[0])


def test_the_smallest_limit_of_its_operations_is_that_of_a_group() -> None:
    assert numbers(queue_of(operation(0, "a"), operation(1, "a", 1), operation(2, "a")).start()) == [[0]]


def test_a_group_touches_no_more_documents_than_others_can_wait_for() -> None:
    each = 2 * MOST_DOCUMENTS // 5
    queue = queue_of(
        *(
            Operation(n, (Reference("accounts", "a"), *(Reference("payments", f"{n}-{of}") for of in range(each))))
            for n in range(3)
        )
    )
    (first,) = queue.start()
    assert numbers([first]) == [[0, 1]]
    queue.finish(first)
    assert numbers(queue.start()) == [[2]]


def test_an_operation_on_many_documents_runs_alone() -> None:
    many = tuple(Reference("payments", str(number)) for number in range(2 * MOST_DOCUMENTS))
    assert numbers(queue_of(Operation(0, many), Operation(1, many[:1])).start()) == [[0]]


def test_operations_that_are_put_back_are_first_again() -> None:
    queue = queue_of(operation(0, "a"), operation(1, "a"))
    (group,) = queue.start()
    queue.add(operation(2, "a"))
    for each in group.operations:
        each.largest_group = 1
    queue.put_back(group.operations)
    queue.finish(group)
    assert numbers(queue.start()) == [[0]]


def test_an_operation_is_withdrawn_only_while_it_waits() -> None:
    first, second = operation(0, "a"), operation(1, "a", 1)
    queue = queue_of(first, second)
    (group,) = queue.start()
    assert (queue.withdraw(first), queue.withdraw(second), queue.withdraw(second)) == (False, True, False)
    queue.finish(group)
    assert (queue.start(), len(queue)) == ([], 0)


@given(st.lists(st.tuples(st.text("abcd", max_size=3), st.integers(1, 4)), max_size=30), st.randoms())
def test_all_operations_run_once_in_the_order_of_their_arrival_on_each_account(
    drawn: list[tuple[str, int]], chance: object
) -> None:
    coming = [operation(number, accounts, largest) for number, (accounts, largest) in enumerate(drawn)]
    queue: OperationQueue[Operation] = OperationQueue()
    running: list[Group[Operation]] = []
    ran: list[Operation] = []
    while coming or running or len(queue):
        if coming and chance.random() < 0.7:  # type: ignore[attr-defined]
            queue.add(coming.pop(0))
        elif running:
            queue.finish(running.pop(chance.randrange(len(running))))  # type: ignore[attr-defined]
        groups = queue.start()
        assert groups or running or coming or not len(queue), "something waits for nothing"
        for group in groups:
            assert len(group.operations) <= min(each.largest_group for each in group.operations)
            ran += group.operations
        running += groups
        busy = [reference for group in running for reference in group.touches]
        assert len(busy) == len(set(busy)), "two groups at once touch one document"
    assert sorted(each.number for each in ran) == list(range(len(drawn)))
    for account in "abcd":
        on_account = [each.number for each in ran if Reference("accounts", account) in each.touches]
        assert on_account == sorted(on_account)
