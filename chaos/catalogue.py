"""All kinds of faults."""

from collections.abc import Sequence

from chaos.broker_faults import broker_faults
from chaos.clock_faults import ClockJump, clock_faults
from chaos.disk_faults import FullDisk, disk_faults
from chaos.fault import Fault
from chaos.partitions import Partition, partitions
from chaos.process_faults import process_faults


def catalogue(*, cluster: bool) -> Sequence[Fault]:
    """Return the kinds of faults for a stack of single servers, or for a cluster."""
    return [
        *process_faults(cluster=cluster),
        *broker_faults(),
        *partitions(cluster=cluster),
        *disk_faults(cluster=cluster),
        *clock_faults(),
    ]


def needs_namespaces(faults: Sequence[Fault]) -> bool:
    """Return whether one of these faults needs a network or mounts of its own."""
    return any(isinstance(fault, Partition | FullDisk | ClockJump) for fault in faults)


def choose(faults: Sequence[Fault], names: str) -> Sequence[Fault]:
    """Return the kinds with these names, separated by commas; all for no name. Raises ValueError for an unknown one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {fault.name for fault in faults}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(sorted(known))}")
    return [fault for fault in faults if fault.name in wanted or not wanted]
