"""Which partitions of an inbox a process leaves to others, so that all have an equal number of them. Pure.

The broker gives each partition to the first process that subscribes, and to the next in line when that one leaves. So
the first process that starts has them all, and each process that has too many leaves some and goes to the end of the
line. It knows only what it has itself, and how many processes there are: no two ever talk to each other.

Of N partitions and K processes, the first N // K * K partitions are shared out evenly, N // K for each. Of the few
that are left, each process takes one at most. So every process has N // K or one more.

It settles: a process that has too many keeps those with the lowest numbers. Once the lower ones are where they stay, a
partition moves on only until it meets a process that has room for it, which one in its line always has.
"""

from collections.abc import Collection


def surplus(active: Collection[int], partitions: int, processes: int) -> list[int]:
    """Return the partitions, numbered from 0, that a process leaves which is active on `active`."""
    processes = max(1, processes)
    share = partitions // processes
    even = [each for each in sorted(active) if each < share * processes]
    rest = [each for each in sorted(active) if each >= share * processes]
    return even[share:] + rest[1:]
