"""How processes share the partitions of an inbox: whoever starts or ends, they end up with equal numbers of them."""

from collections import Counter, deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.fair_shares import surplus

NUMBERS = st.integers(1, 24)
PROCESSES = st.integers(1, 9)


class Lines:
    """The lines of a broker: of each partition the processes that consume it, the active one first."""

    def __init__(self, partitions: int) -> None:
        self.lines: list[deque[int]] = [deque() for _ in range(partitions)]

    def join(self, process: int) -> None:
        for line in self.lines:
            line.append(process)

    def leave(self, process: int) -> None:
        for line in self.lines:
            line.remove(process)

    def active(self, process: int) -> set[int]:
        return {number for number, line in enumerate(self.lines) if line and line[0] == process}

    def share(self, process: int, quiet: Iterable[int] = ()) -> list[int]:
        """Let a process leave what it has too much; it does not know of partitions that are quiet."""
        processes = min(len(line) for line in self.lines)
        left = surplus(self.active(process) - set(quiet), len(self.lines), processes)
        for number in left:
            self.lines[number].remove(process)
            self.lines[number].append(process)
        return left

    def settle(self, chance: st.DataObject | None = None) -> int:
        """Let processes share in turn, or in the order of chance, until none leaves anything; return their moves."""
        processes, moves = sorted(set(self.lines[0])), 0
        for _ in range(10 * len(self.lines) * len(processes) + 10):
            turn = chance.draw(st.permutations(processes)) if chance else processes
            left = sum(len(self.share(process)) for process in turn)
            if not left:
                return moves
            moves += left
        raise AssertionError("it never settles")


@given(NUMBERS, PROCESSES, st.data())
def test_processes_settle_on_equal_shares_whoever_asks_first(
    partitions: int, processes: int, data: st.DataObject
) -> None:
    lines = Lines(partitions)
    for process in range(processes):
        lines.join(process)

    moves = lines.settle(data)

    shares = Counter({process: len(lines.active(process)) for process in range(processes)})
    assert set(shares.values()) <= {partitions // processes, partitions // processes + 1}
    assert moves <= partitions * processes


@given(NUMBERS, st.lists(st.booleans(), max_size=12), st.data())
def test_they_settle_again_after_every_start_and_end(partitions: int, starts: list[bool], data: st.DataObject) -> None:
    lines, running, born = Lines(partitions), [0], 1
    lines.join(0)
    for starts_one in starts:
        if starts_one or len(running) == 1:
            lines.join(born)
            running.append(born)
            born += 1
        else:
            lines.leave(running.pop(data.draw(st.integers(0, len(running) - 1))))
        lines.settle()
        shares = [len(lines.active(process)) for process in running]
        assert max(shares) - min(shares) <= 1


@given(NUMBERS, PROCESSES, st.data())
def test_a_process_leaves_no_more_than_it_has_above_its_share(
    partitions: int, processes: int, data: st.DataObject
) -> None:
    active = data.draw(st.sets(st.integers(0, partitions - 1)))

    left = surplus(active, partitions, processes)

    assert set(left) <= active
    kept = active - set(left)
    assert len(kept) >= min(len(active), partitions // processes)
    assert surplus(kept, partitions, processes) == []


@given(NUMBERS, PROCESSES, st.data())
def test_quiet_partitions_are_shared_once_they_have_messages(
    partitions: int, processes: int, data: st.DataObject
) -> None:
    lines, quiet = Lines(partitions), data.draw(st.sets(st.integers(0, partitions - 1)))
    for process in range(processes):
        lines.join(process)
    for _ in range(10 * partitions * processes):
        moved = [lines.share(process, quiet) for process in range(processes)]
        if not any(moved):
            break

    lines.settle(data)

    shares = [len(lines.active(process)) for process in range(processes)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("active", "processes", "left"),
    [
        ({0, 1, 2, 3}, 1, []),
        ({0, 1, 2, 3}, 2, [2, 3]),
        ({0, 1, 2, 3}, 3, [1, 2]),  # 3 is the one that somebody has as a second
        ({0, 1, 2, 3}, 4, [1, 2, 3]),
        ({0, 3}, 5, [3]),
        ({2}, 5, []),
        ({0, 1, 2, 3}, 0, []),  # nobody knows how many there are
    ],
)
def test_shares_of_four_partitions(active: set[int], processes: int, left: list[int]) -> None:
    assert surplus(active, 4, processes) == left
