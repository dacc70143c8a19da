"""Decides whether a release can carry on what is in flight. Pure."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from operations.doctor.finding import Finding, note, ok, wrong
from order_service.order import Status
from order_service.saga import OLDEST_SAGA_VERSION, SAGA_VERSION
from shared.contracts import BY_ROUTING_KEY
from shared.release import VERSION
from shared.topology import DEAD_LETTERS, FORMER_RETRY_QUEUES, INBOXES, inbox_of, is_migration_queue, retry_queues


class OpenOrders(NamedTuple):
    """How many unsettled orders are in a status, of those that began under one version of the saga."""

    saga_version: int
    status: str
    number: int


class OpenLetters(NamedTuple):
    """How many dead letters of a type wait for a decision."""

    type: str
    number: int


class FilledQueue(NamedTuple):
    """A queue with messages."""

    name: str
    messages: int


class RunningProcess(NamedTuple):
    """A process and the version that it runs; None if it does not say so, or does not answer."""

    name: str
    version: str | None


class SchemaDifference(NamedTuple):
    """How a collection differs from the schema of the release; without a `fix`, the service changes it at its start."""

    collection: str
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """What a release would have to carry on."""

    orders: Sequence[OpenOrders] = ()
    letters: Sequence[OpenLetters] = ()
    queues: Sequence[FilledQueue] = ()
    processes: Sequence[RunningProcess] = ()
    schema: Sequence[SchemaDifference] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """What a release knows."""

    version: str
    saga_versions: range
    statuses: Collection[str]
    types: Collection[str]
    queues: Collection[str]


THIS_RELEASE = Release(
    version=VERSION,
    saga_versions=range(OLDEST_SAGA_VERSION, SAGA_VERSION + 1),
    statuses=frozenset(Status),
    types=BY_ROUTING_KEY.keys(),
    queues=frozenset(
        (*INBOXES, *(name for inbox in INBOXES for name in retry_queues(inbox)), *FORMER_RETRY_QUEUES, DEAD_LETTERS)
    ),
)


def judge(in_flight: InFlight, release: Release = THIS_RELEASE) -> list[Finding]:
    """Return what was found; the release can carry it on unless something is wrong."""
    return [
        *_judge_orders(in_flight.orders, release),
        *_judge_letters(in_flight.letters, release),
        *_judge_queues(in_flight.queues, release),
        *_judge_processes(in_flight.processes, release),
        *_judge_schema(in_flight.schema),
    ]


def _judge_orders(orders: Sequence[OpenOrders], release: Release) -> Iterator[Finding]:
    subject, known = "orders in flight", release.saga_versions
    for found in orders:
        what = f"{_counted(found.number, 'unsettled order')} ({found.status}) began under version {found.saga_version}"
        if found.saga_version >= known.stop:
            detail = f"{what} of the saga, this release knows versions up to {known.stop - 1} and leaves them alone"
            yield wrong(
                subject, detail, "let the release that they began under settle them before its last process stops"
            )
        elif found.saga_version < known.start:
            detail = f"{what} of the saga, this release knows versions from {known.start} on"
            yield wrong(subject, detail, "let the release that runs settle them first, or upgrade to one in between")
        elif found.status not in release.statuses:
            detail = f"{what} of the saga, and this release does not know the status"
            yield wrong(subject, detail, "do not start this release: it cannot be one that follows the one that runs")
    total = sum(found.number for found in orders)
    versions = ", ".join(map(str, sorted({found.saga_version for found in orders})))
    yield ok(subject, f"{_counted(total, 'unsettled order')}{f', of version {versions} of the saga' if total else ''}")


def _judge_letters(letters: Sequence[OpenLetters], release: Release) -> Iterator[Finding]:
    unknown = [found for found in letters if found.type not in release.types]
    if unknown:
        shown = ", ".join(f"{found.type or 'no type'} ({found.number})" for found in unknown)
        fix = "they stay: replay them once a release that knows their type runs"
        yield note("dead letters", f"this release does not know the type of {shown}", fix)
    else:
        yield ok("dead letters", f"{sum(found.number for found in letters)} open, of types that this release knows")


def _judge_queues(queues: Sequence[FilledQueue], release: Release) -> Iterator[Finding]:
    for found in queues:
        if is_migration_queue(found.name):
            detail = f"{found.name} has {_counted(found.messages, 'message')} of an interrupted migration"
            yield wrong("queues", detail, "run `ordersaga migrate` again")
        elif inbox_of(found.name) not in release.queues:
            detail = (
                f"{found.name} has {_counted(found.messages, 'message')}, and no service of this release takes them"
            )
            yield wrong("queues", detail, "let the release that declared it empty it before its last process stops")
    known = [found for found in queues if inbox_of(found.name) in release.queues]
    shown = ", ".join(f"{found.name} ({found.messages})" for found in known)
    yield ok("messages", f"waiting in {shown}" if known else "none waits")


def _judge_processes(processes: Sequence[RunningProcess], release: Release) -> Iterator[Finding]:
    for found in processes:
        subject = f"{found.name} process"
        if found.version is None:
            yield note(subject, "does not say which version it runs: it does not answer, or is older than 0.1.0")
        elif not work_side_by_side(found.version, release.version):
            detail = f"runs {found.version}, which was never tried beside {release.version}"
            yield wrong(subject, detail, "go step by step: one minor version at a time, docs/upgrading.md")
        else:
            yield ok(subject, f"runs {found.version}")


def _judge_schema(differences: Sequence[SchemaDifference]) -> Iterator[Finding]:
    for found in differences:
        subject = f"collection {found.collection}"
        if found.fix:
            yield wrong(subject, found.what, found.fix)
        else:
            yield note(subject, f"{found.what}; the service of this release changes it at its start")
    if not differences:
        yield ok("collections", "match the schema of this release")


def work_side_by_side(one: str, other: str) -> bool:
    """Return whether two versions may run over one broker and database: they are at most one minor version apart.

    A major version follows the last minor one of the major before it. What cannot be read as a version may not.
    """
    older, newer = sorted((_numbers(one), _numbers(other)))
    if not older or not newer:
        return False
    if older[0] == newer[0]:
        return newer[1] - older[1] <= 1
    return newer[0] - older[0] == 1 and newer[1] == 0


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d{1,9})\.(\d{1,9})(\.|$)", version)
    return (int(found[1]), int(found[2])) if found else ()


def _counted(number: int, singular: str) -> str:
    return f"{number} {singular}{'' if number == 1 else 's'}"
