"""Judges the records of servers: jobs, their addresses, the locks of their packages. Pure: no I/O, no clock.

What the services do in two steps is not judged between them: a job ends before its order is informed, an address is
recorded before its job has it, and a lock is released after its job has ended.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple

from operations.audit.order_records import (
    Document,
    OrderRecords,
    is_delivered,
    is_given_up,
    is_held,
    time_of,
    time_text,
)
from operations.audit.report import Violation

FINISHED = ("COMPLETED", "FAILED")

UNPUBLISHED = timedelta(seconds=60)
"""The longest delay of a job's unpublished messages: a sweep runs every few seconds."""

OVERDUE = timedelta(minutes=10)
"""The longest delay of a job that is due: more may be due at once than the service runs in parallel."""

ABANDONED = timedelta(seconds=60)
"""The longest time that a lock may stay expired while the job that held it is due."""

LONGEST_LEASE = timedelta(minutes=5)
"""The longest time that a lock may be held after its job has ended: a crash in between leaves the rest of a lease."""


class OwnedRecord(NamedTuple):
    """An address or a lock that names an order, with that order and its job, if they exist."""

    record: Document
    order: Document | None
    job: Document | None

    @property
    def order_id(self) -> str:
        """The order that the record names."""
        return str(self.record.get("orderId"))


def lies_inside(package: str, ip: str) -> bool:
    """Return whether the text is an IPv4 address that begins with all octets of the package.

    "103.83.x" and "103.83" have the same two octets. This is deliberately not the rule of the provisioning service: a
    fault in one must not hide in the other.
    """
    try:
        IPv4Address(ip)
    except AddressValueError:
        return False
    named = re.sub(r"(\.[xX*]?)*$", "", package.strip())
    return f"{ip}.".startswith(f"{named}.")


def is_finished(job: Document) -> bool:
    """Return whether the job has ended."""
    return job.get("state") in FINISHED


def needs_message_about_job(records: OrderRecords) -> bool:
    """Return whether the order depends on a message: its job has ended, or does not exist for this run."""
    order, job = records.order or {}, records.job
    if is_held(order):
        ready = job is not None and job.get("state") == "COMPLETED" and not job.get("outboxSince")
        return ready and order.get("provisioningStatus") != "COMPLETED"
    if order.get("status") != "PROVISIONING":
        return False
    if job is None:
        return True
    return (is_finished(job) or _run(job, "run") < _run(order, "provisioningRun")) and not job.get("outboxSince")


def last_step(records: OrderRecords) -> datetime | None:
    """Return the time of the last step of the order or its job."""
    known = (records.order or {}, records.job or {})
    return max((at for record in known if (at := time_of(record, "updatedAt"))), default=None)


# --- The rules for an order. ---


def _has_its_server(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that a COMPLETED order of a server has an address inside the package that was ordered."""
    if order.get("status") != "COMPLETED" or is_delivered(order):
        return
    ip, package = server_ip(order), (order.get("provisioning") or {}).get("package")
    if not ip:
        yield records.violation(6, "no server", "COMPLETED without a server's address", "a server with an address")
    elif not package:
        yield records.violation(6, "no package", f"COMPLETED with {ip} of an unknown package", "the package ordered")
    elif not lies_inside(package, ip):
        expected = f"an IPv4 address inside {package}, which was ordered"
        yield records.violation(6, "wrong package", f"COMPLETED with {ip}", expected)


def _owns_its_address(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that the address of a COMPLETED order is recorded as its own."""
    ip = server_ip(order)
    if order.get("status") != "COMPLETED" or not ip:
        return
    if records.address is None:
        yield records.violation(6, "address", f"COMPLETED with {ip}, which is not recorded", "recorded as this order's")
    elif records.address.get("orderId") != records.order_id:
        found = f"COMPLETED with {ip}, recorded as order {records.address.get('orderId')}'s"
        yield records.violation(6, "address", found, "recorded as this order's")
    elif records.address.get("wrong"):
        found = f"COMPLETED with {ip}, recorded as assigned outside the package"
        yield records.violation(6, "address", found, "an address inside the package")


def _agrees_with_its_job(records: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """Check that an order and its job agree on the outcome, or that a message about it is under way."""
    status, state = order.get("status"), _state(records.job)
    if status == "COMPLETED" and not is_delivered(order):
        ip, jobs = server_ip(order), (records.job or {}).get("ip")
        if state != "COMPLETED" or jobs != ip:
            found = f"COMPLETED with {ip}, and its job {state} with {jobs or 'no address'}"
            yield records.violation(6, "job", found, "a job COMPLETED with the same address")
    elif is_held(order):
        # If the job is COMPLETED, the order is about to be informed, or its server is ready and not paid for. Goods,
        # which fail at their payment only, have no job.
        if records.job is None and order.get("fulfilment") == "goods":
            return
        if state not in FINISHED:
            yield records.violation(6, "job", f"FAILED, its money held, and its job {state}", "a FAILED job")
    elif is_given_up(order):
        handed_over = order.get("provisioningStatus") == "COMPLETED"  # and then not paid: an operator gave it up
        if records.job is not None and state != "FAILED" and not handed_over:
            found = f"{status}, its money returned, and its job {state}"
            yield records.violation(6, "server without order", found, "no job, or a FAILED one")
    elif status != "PROVISIONING" and records.job is not None:
        yield records.violation(6, "job too early", f"{status}, and its job {state}", "no job before PROVISIONING")


def _job_is_in_time(records: OrderRecords, _order: Document, now: datetime) -> Iterator[Violation]:
    """Check that an unfinished job is due at some time, and is run then."""
    job = records.job
    if job is None or is_finished(job):
        return
    state, due = _state(job), time_of(job, "dueAt")
    if due is None:
        yield records.violation(7, "job never due", f"its job {state}, never due", "a time for the next step")
    elif state == "QUEUED" and queued_package(job):
        yield from _queue_moves(records, due, now)
    elif now > due + OVERDUE:
        found = f"its job {state}, due at {time_text(due)} and not run"
        yield records.violation(7, "job overdue", found, f"run within {OVERDUE.seconds // 60} minutes")


def _queue_moves(records: OrderRecords, due: datetime, now: datetime) -> Iterator[Violation]:
    """Check the queue of a package: a job may wait for long, but not while the package is free and no job moves."""
    package = records.package or {}
    held_until, moved = time_of(package, "expiresAt"), time_of(package, "movedAt")
    last = max(due, moved) if moved else due
    if (held_until is None or held_until < now) and now > last + OVERDUE:
        found = f"its job QUEUED, the package free, and none of its jobs took a step since {time_text(last)}"
        yield records.violation(7, "job overdue", found, f"a turn within {OVERDUE.seconds // 60} minutes")


def _job_is_published(records: OrderRecords, _order: Document, now: datetime) -> Iterator[Violation]:
    """Check that a sweep has published the messages that a crash left unpublished."""
    since = time_of(records.job or {}, "outboxSince")
    if since is not None and now > since + UNPUBLISHED:
        found = f"its job {_state(records.job)}, its messages unpublished since {time_text(since)}"
        yield records.violation(7, "job unpublished", found, f"published by the sweep within {UNPUBLISHED.seconds} s")


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    _has_its_server,
    _owns_its_address,
    _agrees_with_its_job,
    _job_is_in_time,
    _job_is_published,
)


def without_order(records: OrderRecords) -> Iterator[Violation]:
    """Yield the violation of a job whose order does not exist."""
    if records.job is not None:
        invariant = 6 if _state(records.job) == "COMPLETED" else 7
        found = f"a job ({_state(records.job)}) and no order"
        yield records.violation(invariant, "job without order", found, "an order with this id")


# --- Addresses and locks. ---


def judge_address(address: OwnedRecord) -> Iterator[Violation]:
    """Yield the violation of an address whose order does not exist, and is not archived."""
    if address.order is None and not address.record.get("archivedAt"):
        ip, found = (
            str(address.record["_id"]),
            f"recorded as the address of order {address.order_id}, which does not exist",
        )
        yield Violation(6, "address without order", "address", ip, found, "addresses of orders only")


def archived_addresses(marked: int, expected: int) -> Iterator[Violation]:
    """Yield the violation of a number of addresses that is not that of the archived orders."""
    if marked != expected:
        found = f"{marked} addresses of archived orders"
        yield Violation(
            6, "archived addresses", "address", "archived", found, f"{expected}, as when they were archived"
        )


def shared_address(ip: str, number: int, order_ids: Sequence[str]) -> Violation:
    """Return the violation of an address that several COMPLETED orders have, these among them."""
    found = f"the server of {number} orders, including {' and '.join(order_ids)}"
    return Violation(6, "shared address", "address", ip, found, "the server of one order")


def two_servers(order_id: str, number: int, ips: Sequence[str]) -> Violation:
    """Return the violation of an order for which several addresses inside its package were bought."""
    found = f"{number} addresses inside its package, including {' and '.join(ips)}"
    return Violation(6, "two servers", "order", order_id, found, "one address")


def judge_lock(lock: OwnedRecord, now: datetime) -> Iterator[Violation]:
    """Yield the violations of a lock that names a holder; after a crash, it is free once its lease has expired."""
    package, expires, holder = str(lock.record["_id"]), time_of(lock.record, "expiresAt"), f"order {lock.order_id}"
    if lock.job is None:
        yield _lock(package, "lock without job", f"held for {holder}, which has no job", "held for jobs only")
    elif expires is None:
        yield _lock(package, "lock without lease", f"held for {holder} indefinitely", "held for the time of a lease")
    elif is_finished(lock.job):
        over = time_of(lock.job, "updatedAt")
        if now < expires and over is not None and now > over + LONGEST_LEASE:
            found = f"held for {holder}, whose job has been {_state(lock.job)} since {time_text(over)}"
            yield _lock(package, "lock of a finished job", found, "released when its job ends")
    elif _is_due_for_lock(lock.job, now - ABANDONED) and now > expires + ABANDONED:
        found = f"its lease expired at {time_text(expires)}, and {holder}, its job {_state(lock.job)}, still waits"
        yield _lock(package, "abandoned lock", found, "taken over once its lease has expired")


def _is_due_for_lock(job: Document, now: datetime) -> bool:
    due = time_of(job, "dueAt")
    return due is not None and due < now and not job.get("ip")


# --- Helpers of the rules. ---


def server_ip(order: Document) -> str | None:
    """Return the address of the order's server, if it has one."""
    ip = (order.get("server") or {}).get("ip")
    return ip if isinstance(ip, str) else None


def queued_package(job: Document) -> str | None:
    """Return the package that the job is queued for: it has no address and is not running. None if it is not queued."""
    key = job.get("lockKey")
    return key if isinstance(key, str) and job.get("state") == "QUEUED" and not job.get("ip") else None


def _lock(package: str, kind: str, found: str, expected: str) -> Violation:
    return Violation(6, kind, "lock", package, found, expected)


def _state(job: Document | None) -> str:
    return "does not exist" if job is None else str(job.get("state"))


def _run(record: Document, name: str) -> int:
    """Return the run that the record is about; records of older releases are about the first."""
    run = record.get(name)
    return run if isinstance(run, int) and run > 0 else 1
