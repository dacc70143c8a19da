"""Faults of the broker that keep it running: its memory alarm, and queues that somebody purges or deletes."""

import asyncio
import contextlib
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.fault import Injected
from chaos.operator import recover
from chaos.stack import ChaosStack
from operations.stack.rabbitmq import RabbitMQ
from operations.stack.rabbitmq_cluster import RabbitMQCluster
from shared import topology
from shared.broker_rights import VIRTUAL_HOST

SHORTEST_ALARM, LONGEST_ALARM = 2.0, 6.0
NO_MEMORY, DEFAULT_MEMORY = "0.00001", "0.4"
"""The share of the machine's memory from which a node blocks publishers: nearly none, and RabbitMQ's default."""
SHORTEST_LOSS, LONGEST_LOSS = 0.5, 3.0
"""The seconds until an operator begins to recover what a queue has lost."""
BUSY_QUEUES = tuple(topology.INBOXES)
"""The queues through which messages go when all is well."""
OTHER_QUEUES = (topology.DEAD_LETTERS, *(name for inbox in BUSY_QUEUES for name in topology.retry_queues(inbox)))
BUSY_SHARE = 3 / 4


async def control(broker: RabbitMQ | RabbitMQCluster, *arguments: str) -> None:
    """Run rabbitmqctl on a node, or on any node of a cluster. Raises LookupError if it fails."""
    try:
        await asyncio.to_thread(broker.control, *arguments)
    except (OSError, subprocess.SubprocessError) as error:
        raise LookupError(f"rabbitmqctl failed: {error}") from error


@dataclass(frozen=True, slots=True)
class MemoryAlarm:
    """A node runs out of memory, as it thinks, so that the broker blocks all publishers."""

    name: str = "memory-alarm"
    title: str = "memory alarm of the broker for 2 to 6 s"
    weight: int = 1

    def missing(self) -> str | None:
        """Return None: it can be had everywhere."""
        return None

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Raise the alarm. Raises LookupError if the node is away."""
        node = chance.choice(stack.broker.nodes)
        stack.require([node.name])

        async def clear() -> None:
            with contextlib.suppress(LookupError):  # a node that has ended starts without the alarm
                await control(node, "set_vm_memory_high_watermark", DEFAULT_MEMORY)

        await control(node, "set_vm_memory_high_watermark", NO_MEMORY)
        seconds = chance.uniform(SHORTEST_ALARM, LONGEST_ALARM)
        return Injected(f"{node.name}, for {seconds:.1f} s", seconds, clear)


@dataclass(frozen=True, slots=True)
class QueueLost:
    """Somebody purges or deletes a queue with what is in it; an operator recovers as docs/recovery.md says."""

    name: str
    title: str
    weight: int
    command: str

    def missing(self) -> str | None:
        """Return None: it can be had everywhere."""
        return None

    async def strike(self, stack: ChaosStack, chance: random.Random) -> Injected:
        """Lose a queue. Raises LookupError if the broker does not do it."""
        queue = chance.choice(BUSY_QUEUES if chance.random() < BUSY_SHARE else OTHER_QUEUES)
        stack.require(stack.nodes)
        injected = Injected(queue, chance.uniform(SHORTEST_LOSS, LONGEST_LOSS), told="`ordersaga recover`")

        async def bring_back() -> None:
            await recover(stack.location, injected.at)

        injected.undo = bring_back
        await control(stack.broker, self.command, "-p", VIRTUAL_HOST, queue)
        return injected


def broker_faults() -> Sequence[MemoryAlarm | QueueLost]:
    """Return the kinds of faults of the broker."""
    return [
        MemoryAlarm(),
        QueueLost("queue-purged", "a queue purged", 2, "purge_queue"),
        QueueLost("queue-deleted", "a queue deleted", 1, "delete_queue"),
    ]
