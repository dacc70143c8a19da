"""Judges what is recorded about servers: jobs, their addresses, the locks of their packages. Pure: no I/O, no clock.

What the services do in two steps is not judged between them: a job ends before its order hears of it, an address is
recorded before its job says so, and a lock is released after its job has ended.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple

from operations.audit.order_records import Document, OrderRecords, in_words, is_given_up, is_held, moment
from operations.audit.report import Violation

OVER = ("COMPLETED", "FAILED")

UNPUBLISHED = timedelta(seconds=60)
"""How long what a job has to say may stay unpublished: a sweep comes every few seconds."""

OVERDUE = timedelta(minutes=10)
"""How long after its time nobody may have taken a job up: more may be due at once than the service carries at once."""

LEFT_BEHIND = timedelta(seconds=60)
"""How long after the end of its lease a lock may be nobody's, while the job that held it is due."""

LONGEST_LEASE = timedelta(minutes=5)
"""How long after the end of its job a lock may be held: a crash between the two leaves it for the rest of its lease."""


class Held(NamedTuple):
    """A record that belongs to an order, an address or a lock, with the order and the job of that id, if there are."""

    record: Document
    order: Document | None
    job: Document | None

    @property
    def order_id(self) -> str:
        """Whom it belongs to."""
        return str(self.record.get("orderId"))


def lies_inside(package: str, ip: str) -> bool:
    """Whether the text is an IPv4 address that begins with the package's octets, each of them whole.

    Of "103.83.x" and "103.83" these are the same two. The service that buys has a rule of its own: a fault in one of
    the two must not hide in both.
    """
    try:
        IPv4Address(ip)
    except AddressValueError:
        return False
    named = re.sub(r"(\.[xX*]?)*$", "", package.strip())
    return f"{ip}.".startswith(f"{named}.")


def is_over(job: Document) -> bool:
    """Whether nothing happens to the job any more by itself."""
    return job.get("state") in OVER


def waits_for_its_job(case: OrderRecords) -> bool:
    """Whether only a message, about a job that is over or not begun, can carry the order on."""
    order, job = case.order or {}, case.job
    if is_held(order):
        return job is not None and job.get("state") == "COMPLETED" and not job.get("outboxSince")
    if order.get("status") != "PROVISIONING":
        return False
    if job is None:
        return True
    return (is_over(job) or _run(job, "run") < _run(order, "provisioningRun")) and not job.get("outboxSince")


def last_step(case: OrderRecords) -> datetime | None:
    """When the order or its job took its last step."""
    records = (case.order or {}, case.job or {})
    return max((at for record in records if (at := moment(record, "updatedAt"))), default=None)


# --- The rules for an order. ---


def _has_its_server(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """A COMPLETED order has an address inside the package that was ordered."""
    if order.get("status") != "COMPLETED":
        return
    ip, package = server_ip(order), (order.get("provisioning") or {}).get("package")
    if not ip:
        yield case.violation(6, "no server", "COMPLETED without a server's address", "a server with an address")
    elif not package:
        yield case.violation(6, "no package", f"COMPLETED with {ip} of an unknown package", "the package ordered")
    elif not lies_inside(package, ip):
        expected = f"an IPv4 address inside {package}, which was ordered"
        yield case.violation(6, "wrong package", f"COMPLETED with {ip}", expected)


def _owns_its_address(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """The address of a COMPLETED order is recorded as its own."""
    ip = server_ip(order)
    if order.get("status") != "COMPLETED" or not ip:
        return
    if case.address is None:
        yield case.violation(6, "address", f"COMPLETED with {ip}, recorded as nobody's", "recorded as this order's")
    elif case.address.get("orderId") != case.order_id:
        found = f"COMPLETED with {ip}, recorded as order {case.address.get('orderId')}'s"
        yield case.violation(6, "address", found, "recorded as this order's")
    elif case.address.get("wrong"):
        found = f"COMPLETED with {ip}, recorded as assigned outside the package"
        yield case.violation(6, "address", found, "an address inside the package")


def _agrees_with_its_job(case: OrderRecords, order: Document, _now: datetime) -> Iterator[Violation]:
    """An order and its job have come to the same end, or the one is about to hear of the other's."""
    status, state = order.get("status"), _state(case.job)
    if status == "COMPLETED":
        ip, jobs = server_ip(order), (case.job or {}).get("ip")
        if state != "COMPLETED" or jobs != ip:
            found = f"COMPLETED with {ip}, and its job {state} with {jobs or 'no address'}"
            yield case.violation(6, "job", found, "a job COMPLETED with the same address")
    elif is_held(order):
        # A job that is COMPLETED here has told so, and the order is about to hear it.
        if state not in OVER:
            yield case.violation(6, "job", f"FAILED, its money held, and its job {state}", "a job that has FAILED")
    elif is_given_up(order):
        if case.job is not None and state != "FAILED":
            found = f"{status}, its money returned, and its job {state}"
            yield case.violation(6, "server without order", found, "no job, or one that has FAILED")
    elif status != "PROVISIONING" and case.job is not None:
        yield case.violation(6, "job too early", f"{status}, and its job {state}", "no job before PROVISIONING")


def _job_goes_on(case: OrderRecords, _order: Document, now: datetime) -> Iterator[Violation]:
    """A job that is not over is due at some time, and somebody comes then."""
    job = case.job
    if job is None or is_over(job):
        return
    state, due = _state(job), moment(job, "dueAt")
    if due is None:
        yield case.violation(7, "job never due", f"its job {state}, due at no time", "a time of the next step")
    elif state == "QUEUED" and line_of(job):
        yield from _line_moves(case, due, now)
    elif now > due + OVERDUE:
        found = f"its job {state}, due at {in_words(due)} and not taken up"
        yield case.violation(7, "job overdue", found, f"taken up within {OVERDUE.seconds // 60} minutes")


def _line_moves(case: OrderRecords, due: datetime, now: datetime) -> Iterator[Violation]:
    """Who stands in the line of a package may stand long, but not while the package is free and nobody takes a turn."""
    line = case.line or {}
    held_until, moved = moment(line, "expiresAt"), moment(line, "movedAt")
    last = max(due, moved) if moved else due
    if (held_until is None or held_until < now) and now > last + OVERDUE:
        found = f"its job QUEUED, nobody holds the package, and no job of it took a step since {in_words(last)}"
        yield case.violation(7, "job overdue", found, f"a turn within {OVERDUE.seconds // 60} minutes")


def _job_is_published(case: OrderRecords, _order: Document, now: datetime) -> Iterator[Violation]:
    """What a crash left unpublished is published by a sweep."""
    since = moment(case.job or {}, "outboxSince")
    if since is not None and now > since + UNPUBLISHED:
        found = f"its job {_state(case.job)}, its messages unpublished since {in_words(since)}"
        yield case.violation(7, "job unpublished", found, f"published by the sweep within {UNPUBLISHED.seconds} s")


Rule = Callable[[OrderRecords, Document, datetime], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    _has_its_server,
    _owns_its_address,
    _agrees_with_its_job,
    _job_goes_on,
    _job_is_published,
)


def without_order(case: OrderRecords) -> Iterator[Violation]:
    """Judge a job whose order does not exist."""
    if case.job is not None:
        invariant = 6 if _state(case.job) == "COMPLETED" else 7
        found = f"a job ({_state(case.job)}) and no order"
        yield case.violation(invariant, "job without order", found, "an order of this id")


# --- Addresses and locks. ---


def judge_address(address: Held) -> Iterator[Violation]:
    """Judge the record that says whose an address is."""
    if address.order is None:
        ip, found = (
            str(address.record["_id"]),
            f"recorded as the address of order {address.order_id}, which does not exist",
        )
        yield Violation(6, "address of nobody", "address", ip, found, "addresses of orders only")


def shared_address(ip: str, number: int, order_ids: Sequence[str]) -> Violation:
    """An address that so many COMPLETED orders have, these among them."""
    found = f"the server of {number} orders, of {' and '.join(order_ids)} among them"
    return Violation(6, "shared address", "address", ip, found, "the server of one order")


def two_servers(order_id: str, number: int, ips: Sequence[str]) -> Violation:
    """An order that so many addresses inside its package were bought for, these among them."""
    found = f"{number} addresses inside its package, {' and '.join(ips)} among them"
    return Violation(6, "two servers", "order", order_id, found, "one address")


def judge_lock(lock: Held, now: datetime) -> Iterator[Violation]:
    """Judge the lock of a package that names a holder; what a crash left behind is nobody's once its lease is over."""
    package, expires, holder = str(lock.record["_id"]), moment(lock.record, "expiresAt"), f"order {lock.order_id}"
    if lock.job is None:
        yield _lock(package, "lock of nobody", f"held for {holder}, which has no job", "held for jobs only")
    elif expires is None:
        yield _lock(package, "lock without end", f"held for {holder} without end", "held for the time of a lease")
    elif is_over(lock.job):
        over = moment(lock.job, "updatedAt")
        if now < expires and over is not None and now > over + LONGEST_LEASE:
            found = f"held for {holder}, whose job is {_state(lock.job)} since {in_words(over)}"
            yield _lock(package, "lock of a job that is over", found, "released when its job ends")
    elif _is_due_for_lock(lock.job, now - LEFT_BEHIND) and now > expires + LEFT_BEHIND:
        found = f"its lease ended at {in_words(expires)}, and {holder}, its job {_state(lock.job)}, waits in vain"
        yield _lock(package, "lock left behind", found, "taken over once its lease has ended")


def _is_due_for_lock(job: Document, now: datetime) -> bool:
    due = moment(job, "dueAt")
    return due is not None and due < now and not job.get("ip")


# --- What the rules are made of. ---


def server_ip(order: Document) -> str | None:
    """Return the address of the order's server, if it has one."""
    ip = (order.get("server") or {}).get("ip")
    return ip if isinstance(ip, str) else None


def line_of(job: Document) -> str | None:
    """Return the package in whose line the job stands, if it stands in one: without an address, and at no work."""
    key = job.get("lockKey")
    return key if isinstance(key, str) and job.get("state") == "QUEUED" and not job.get("ip") else None


def _lock(package: str, kind: str, found: str, expected: str) -> Violation:
    return Violation(6, kind, "lock", package, found, expected)


def _state(job: Document | None) -> str:
    return "does not exist" if job is None else str(job.get("state"))


def _run(record: Document, name: str) -> int:
    """Which run the record is about; records from before runs were counted are about the first."""
    run = record.get(name)
    return run if isinstance(run, int) and run > 0 else 1
