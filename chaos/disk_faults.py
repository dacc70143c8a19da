"""Faults of disks: the one of a server is full, or each write to it takes long."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from chaos import disks, namespaces
from chaos.disks import slow_down
from chaos.fault import Fault, Injected
from chaos.stack import ChaosStack
from operations.stack.layout import CLUSTER_SIZE, numbered

SHORTEST_FULL, LONGEST_FULL = 5.0, 15.0
SHORTEST_SLOW, LONGEST_SLOW = 3.0, 15.0
SHORTEST_DELAY, LONGEST_DELAY = 0.05, 0.2
"""The seconds by which each write takes longer."""


@dataclass(frozen=True, slots=True)
class FullDisk:
    """The disk of a server gets full, but for some bytes, and has room again some seconds later.

    A member whose disk is full is at times the primary.
    """

    name: str
    title: str
    weight: int
    server: str
    left: int

    def missing(self) -> str | None:
        """Return why no server can have a small disk."""
        return namespaces.missing()

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Fill the disk. Raises LookupError if its server, or another of its kind, is away."""
        await stack.spare_one(stack.nodes if self.server in stack.nodes else stack.members)
        disk = disks.disk_of(stack.layout, self.server)
        seconds, leads = chance.uniform(SHORTEST_FULL, LONGEST_FULL), chance.random() < 1 / 2

        async def empty() -> None:
            disk.empty()

        if self.server in stack.members and leads:
            await stack.command(self.server, "replSetStepUp")
        await asyncio.to_thread(disk.fill, self.left)
        injected = Injected(f"that of {self.server}, for {seconds:.0f} s", seconds, empty)
        if self.server in stack.members:
            # It need not write for long: the files of its journal have their size from the beginning.
            await stack.command(self.server, "fsync")
        return injected


@dataclass(frozen=True, slots=True)
class SlowDisk:
    """Each write of a server to its disk takes long for some seconds."""

    name: str = "disk-slow"
    title: str = "a disk slow by 50 to 200 ms a write"
    weight: int = 2

    def missing(self) -> str | None:
        """Return why no disk can be slow."""
        return disks.slowing_missing()

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Slow a server down. Raises LookupError if it does not run."""
        name = chance.choice([*stack.nodes, *stack.members])
        delay = chance.uniform(SHORTEST_DELAY, LONGEST_DELAY)
        seconds = chance.uniform(SHORTEST_SLOW, LONGEST_SLOW)
        log = stack.layout.logs / "strace.log"
        slowing = await slow_down(stack.find(name).pid, delay, log, stack.layout.root)

        async def stop() -> None:
            await slowing.end(disks.SLOWING_GRACE_SECONDS)

        return Injected(f"{name}, {1000 * delay:.0f} ms a write for {seconds:.0f} s", seconds, stop)


def disk_faults(*, cluster: bool) -> Sequence[FullDisk | SlowDisk]:
    """Return the kinds of faults of disks. The last server of each kind has a small one."""
    mongodb, rabbitmq = (numbered(name, CLUSTER_SIZE if cluster else 1) for name in ("mongodb", "rabbitmq"))
    return [
        FullDisk("database-disk-full", f"the disk of {mongodb} full", 1, mongodb, 0),
        FullDisk("broker-disk-low", f"little room on the disk of {rabbitmq}", 1, rabbitmq, disks.BELOW_ALARM),
        SlowDisk(),
    ]


def servers_on_small_disks(faults: Sequence[Fault]) -> Sequence[str]:
    """Return the servers that need a small disk for these faults."""
    return [fault.server for fault in faults if isinstance(fault, FullDisk)]
