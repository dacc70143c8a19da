"""Which operations run together, and which wait: pure.

Operations that touch a common document take turns in the order of their arrival. Those that wait for the same turn,
directly or through others, form a group, which one transaction commits. Groups that run at the same time touch no
common document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from payment_service.ledger.unit_of_work import Reference

MOST_DOCUMENTS = 500
"""The most documents that the operations of a group touch, each counted with all of its own.

Other processes that need one of them wait for the end of its transaction.
"""


class Queued(Protocol):
    """An operation: the documents that it touches, and the size of the largest group that it may belong to."""

    touches: tuple[Reference, ...]
    largest_group: int


Item = TypeVar("Item", bound=Queued)


@dataclass(eq=False, slots=True)
class Group(Generic[Item]):
    """Operations for one transaction, in the order of their arrival."""

    operations: list[Item]
    touches: set[Reference]
    largest: int

    def has_room_with(self, others: "Sequence[Group[Item]]") -> bool:
        """Return whether the groups would fit into one."""
        groups = [self, *others]
        if others and sum(len(group.touches) for group in groups) > MOST_DOCUMENTS:
            return False
        return sum(len(group.operations) for group in groups) <= min(group.largest for group in groups)

    def absorb(self, other: "Group[Item]") -> None:
        """Take over the operations of another group, behind those of this one."""
        self.operations += other.operations
        other.operations = []
        self.touches |= other.touches
        self.largest = min(self.largest, other.largest)


class OperationQueue(Generic[Item]):
    """The operations that wait, and the documents of the groups that run."""

    def __init__(self) -> None:
        self._waiting: list[Item] = []
        self._busy: set[Reference] = set()

    def __len__(self) -> int:
        """Return the number of operations that wait."""
        return len(self._waiting)

    def add(self, operation: Item) -> None:
        """Let an operation wait behind all others."""
        self._waiting.append(operation)

    def put_back(self, operations: Sequence[Item]) -> None:
        """Let operations wait again, ahead of all others."""
        self._waiting[:0] = operations

    def withdraw(self, operation: Item) -> bool:
        """Remove an operation that waits; return False if it does not."""
        for place, waiting in enumerate(self._waiting):
            if waiting is operation:
                del self._waiting[place]
                return True
        return False

    def must_wait(self, operation: Item) -> bool:
        """Return whether a group that runs touches a document of the operation."""
        return not self._busy.isdisjoint(operation.touches)

    def start(self) -> list[Group[Item]]:
        """Return the groups that can run now; their documents are busy until `finish`."""
        groups: list[Group[Item]] = []
        forming: dict[Reference, Group[Item]] = {}
        blocked: set[Reference] = set()
        waiting: list[Item] = []
        for operation in self._waiting:
            own = Group([operation], set(operation.touches), operation.largest_group)
            if self.must_wait(operation) or not blocked.isdisjoint(operation.touches) or not _joined(own, forming):
                # Nothing that comes later may overtake it on any of its documents.
                blocked.update(operation.touches)
                waiting.append(operation)
            else:
                groups.append(own)
        self._waiting = waiting
        self._busy.update(forming)
        return [group for group in groups if group.operations]

    def finish(self, group: Group[Item]) -> None:
        """Free the documents of a group that has run."""
        self._busy -= group.touches


def _joined(own: Group[Item], forming: dict[Reference, Group[Item]]) -> bool:
    """Join an operation with the groups that touch its documents; return False if they would become too large."""
    (operation,) = own.operations
    touching = {id(forming[each]): forming[each] for each in operation.touches if each in forming}
    joined, *others = [*touching.values(), own]
    if not joined.has_room_with(others):
        return False
    for other in others:
        joined.absorb(other)
        forming.update(dict.fromkeys(other.touches, joined))
    forming.update(dict.fromkeys(own.touches, joined))
    return True
