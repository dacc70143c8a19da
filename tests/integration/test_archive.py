"""The archive over real records: what it takes and leaves, and that it and the databases are complete at all times."""

import asyncio
import gzip
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pymongo
import pytest
from bson.json_util import JSONOptions, loads

from operations.archive.archiving import ArchivePlan, ArchiveResult, VerifiedFile, archive_orders, find_archivable
from operations.archive.errors import ArchiveError
from operations.archive.files import ArchiveDirectory, ArchiveWriter, verify_archive
from operations.archive.filesystems import allow_any
from operations.doctor.archive import check_archive
from operations.reading.archived_totals import ArchivedTotals
from operations.removal.orders import REMOVED_KINDS
from shared import failpoints as at
from shared.failpoints import SimulatedCrashError, nothing_fails
from tests.integration.test_cleanup import all_published, grow_old, short_transactions
from tests.support import commands
from tests.support.access import ADMIN_KEY
from tests.support.processes import Stack, run_stack
from tests.support.world import (
    DATABASES,
    FREE,
    FULL,
    JUST_NOW,
    NOW,
    Document,
    World,
    order,
    populate,
    populate_captures,
    populate_funds,
    populate_holds,
    populate_orders_paid_from_a_retainer,
    populate_slots,
)

BEFORE = NOW - timedelta(hours=1)
CONFIRMED = {
    "confirmed",
    "free",
    "refunded",
    "from-retainer",
    "part-to-retainer",
    "slot-auto",
    "slot-named",
    "with-hold",
}
COMPLETED = {"gone", "completed"}
CANCELLED = {"no-stock", "declined", "tombstones", "server-cancelled"}
CANCELLED |= {"back-to-retainer", "short-of-money", "slot-declined", "slots-full"}
ARCHIVABLE = CONFIRMED | COMPLETED | CANCELLED
PERSONAL = {"customer": {"name": "Ada Unmistakable"}, "words": ["ada", "unmistakable"]}

KINDS = {"orders": "orders", "reservations": "reservations", "payments": "payments", "charges": "gateway_charges"}
KINDS |= {"jobs": "jobs", "intents": "stripe_intents", "holds": "reservations"}
OPTIONS = JSONOptions(tz_aware=True)


@pytest.fixture
def database_prefix(emptied_prefix: str) -> str:
    return emptied_prefix


@pytest.fixture
async def world(mongodb_url: str, bare_broker: str, database_prefix: str) -> AsyncIterator[World]:
    async with pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client:
        created = World(client, database_prefix, mongodb_url, bare_broker)
        populate(created)
        populate_funds(created)
        populate_orders_paid_from_a_retainer(created)
        populate_slots(created)
        populate_holds(created)
        await created.store()
        orders = created.collection("orders")
        await orders.update_one({"_id": "with-hold"}, {"$set": {"holdId": "taken"}})
        await orders.update_one({"_id": "confirmed"}, {"$set": {"personal": PERSONAL, "amountOfLong": bson.Int64(5)}})
        yield created


async def no_action(_file: VerifiedFile) -> None:
    """Do nothing about a verified file."""


async def archive(
    world: World,
    directory: Path,
    *,
    failpoint: Callable[[str], None] = nothing_fails,
    result: ArchiveResult | None = None,
    on_verified: Callable[[VerifiedFile], Awaitable[object]] = no_action,
    **how: Any,
) -> ArchiveResult:
    plan = ArchivePlan(BEFORE, **({"group": 3, "per_file": 5} | how))
    return await archive_orders(
        world.mongodb_url,
        world.prefix,
        directory,
        plan,
        result=result,
        check=allow_any,  # These tests may run in memory, or in a container.
        on_verified=on_verified,
        failpoint=failpoint,
    )


async def everything(world: World) -> dict[str, dict[str, Document]]:
    """All records of all services, by collection and id."""
    return {name: {d["_id"]: d async for d in world.collection(name).find()} for name in DATABASES}


def read_orders(directory: Path) -> dict[tuple[str, datetime], Document]:
    """What a reader finds in the complete files, by the order's id and creation: of copies, the one in the last file.

    The same id with another `createdAt` is another order.
    """
    found: dict[tuple[str, datetime], Document] = {}
    for path in sorted(directory.glob("*.jsonl.gz")):
        with gzip.open(path) as lines:
            for line in lines:
                record = loads(line, json_options=OPTIONS)
                found[record["_id"], record["records"]["orders"][0]["createdAt"]] = record["records"]
    return found


def read_archive(directory: Path) -> dict[str, Document]:
    """The orders of an archive by id, where each id is that of one order."""
    found = read_orders(directory)
    by_id = {order_id: records for (order_id, _), records in found.items()}
    assert len(by_id) == len(found)
    return by_id


def assert_nothing_is_lost(
    before: dict[str, dict[str, Document]], after: dict[str, dict[str, Document]], archived: dict[str, Document]
) -> None:
    """Every record is in the databases or, together with its order, in the archive; as it was."""
    gone = {kind: before[name].keys() - after[name].keys() for kind, name in KINDS.items()}
    for kind, name in KINDS.items():
        records = {document["_id"]: document for found in archived.values() for document in found.get(kind, ())}
        for key in gone[kind]:
            if (kind == "holds") != key.startswith("hold:"):
                continue
            assert bson.encode(records[key]) == bson.encode(before[name][key]), (kind, key)
        for key in after[name].keys() & before[name].keys():
            assert after[name][key] == before[name][key], (name, key)


# --- What is archived, and what the books say afterwards. ---


async def test_settled_orders_are_archived_with_all_their_records_and_the_books_balance(
    world: World, tmp_path: Path
) -> None:
    before = await everything(world)
    report = await world.audit()
    assert report.violations == []
    outcome = await archive(world, tmp_path / "archive")
    after, archived = await everything(world), read_archive(tmp_path / "archive")
    assert before["orders"].keys() - after["orders"].keys() == archived.keys() == ARCHIVABLE
    assert_nothing_is_lost(before, after, archived)
    assert outcome.kept == {"a product or a slot has a pending move of the order": 1}
    assert outcome.statuses == {"CONFIRMED": 8, "COMPLETED": 2, "CANCELLED": 8}
    assert outcome.deleted == outcome.found
    assert outcome.deleted == {
        "orders": 18,
        "reservations": 18,
        "payments": 18,
        "charges": 13,
        "jobs": 2,
        "intents": 0,
        "holds": 1,
    }
    for name in ("products", "accounts", "entries", "locks", "fund_payments"):
        assert after[name] == before[name]
    assert {key for key, address in after["addresses"].items() if "archivedAt" in address} == {
        "103.181.9.5",
        "103.181.90.9",
    }
    now = await world.audit()
    assert now.violations == []
    assert now.checked["orders"] == report.checked["orders"] - 18
    assert now.information["archivedOrders"] == {"CANCELLED": 8, "COMPLETED": 2, "CONFIRMED": 8}
    assert now.information["systemBalances"] == report.information["systemBalances"]
    assert now.information["bookedInSlots"] == report.information["bookedInSlots"]

    again = await archive(world, tmp_path / "archive")
    assert (again.files, sum(again.deleted.values())) == ([], 0)


TOTALS: list[tuple[str, str, str, int, str]] = [
    ("stock", "stock:p1", "units", 1, "conservation"),
    ("shipped", "stock:p1", "shipped", 1, "shipped"),
    ("slot", f"stock:{FULL}", "units", 1, "conservation"),
    ("stock of no product", "stock:none", "units", 1, "unknown product"),
    ("retainer", "retainer:r1", "amount", 1, "archived payments"),
    ("orders of a retainer", "retainer:r1", "orders", 1, "archived payments"),
    ("another retainer", "retainer:r9", "amount", 1, "archived payments"),
    ("addresses", "addresses", "count", -1, "archived addresses"),
]


async def test_the_audit_needs_every_total(world: World, tmp_path: Path) -> None:
    await archive(world, tmp_path / "archive")
    totals = world.client[f"{world.prefix}_operations"]["archived"]
    assert {"stock:p1", "stock:p2", f"stock:{FULL}", "retainer:r1", "addresses"} <= {
        d["_id"] async for d in totals.find()
    }
    for name, key, field, change, kind in TOTALS:
        await totals.update_one({"_id": key}, {"$inc": {field: change}}, upsert=True)
        assert {violation.kind for violation in (await world.audit()).violations} == {kind}, name
        await totals.update_one({"_id": key}, {"$inc": {field: -change}})
        if key.endswith(("none", "r9")):
            await totals.delete_one({"_id": key})
    addresses = world.collection("addresses")
    lost = await addresses.find_one_and_delete({"_id": "103.181.9.5"})
    assert {violation.kind for violation in (await world.audit()).violations} == {"archived addresses"}
    assert lost is not None
    await addresses.insert_one(lost)
    assert (await world.audit()).violations == []


async def test_a_dry_run_counts_and_writes_nothing(world: World, tmp_path: Path) -> None:
    before = await everything(world)
    outcome = await find_archivable(world.mongodb_url, world.prefix, ArchivePlan(BEFORE))
    assert outcome.found["orders"] == 18
    assert not any(outcome.deleted.values())
    assert await everything(world) == before


OPEN: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("unpublished", "orders", "confirmed", {"unpublished": True}, "a message is unpublished"),
    ("a pending refund", "orders", "refunded", {"refunds.1.status": "PENDING"}, "a refund waits for its answer"),
    ("a pending part", "payments", "refunded", {"parts.1.status": "PENDING"}, "a refund waits for its answer"),
    ("an unknown charge", "payments", "gone", {"nextLookupAt": NOW}, "the outcome of a charge of the payment"),
    ("a return on its way", "products", "p2", {"moving.return:r1:refunded": 1}, "a product or a slot has a pending"),
    ("a hold on its way", "products", "p4", {"moving.hold:taken": 1}, "a product or a slot has a pending"),
    ("a hold not returned", "reservations", "hold:taken", {"status": "RESERVED"}, "the hold that the order took over"),
    ("a pending move of a slot", "products", FREE, {"moving.slot-auto": -1}, "a product or a slot has a pending"),
    ("a lock", "locks", "103.83", {"orderId": "completed"}, "the lock of a package names the order"),
    ("stock not reserved", "reservations", "confirmed", {"status": "RELEASED"}, "the audit finds something wrong"),
    ("money only authorised", "payments", "confirmed", {"status": "AUTHORIZED"}, "the payment is authorised"),
    ("money returned", "gateway_charges", "gone", {"refundedAt": NOW}, "the audit finds something wrong"),
    ("another's address", "addresses", "103.181.9.5", {"orderId": "held"}, "the audit finds something wrong"),
    ("two servers", "addresses", "103.181.90.9", {"wrong": False}, "the order has two servers"),
    ("FAILED", "orders", "confirmed", {"status": "FAILED"}, ""),
    ("not settled", "orders", "confirmed", {"settled": False}, ""),
    ("too young", "orders", "confirmed", {"updatedAt": JUST_NOW}, ""),
]


async def test_an_order_with_something_open_stays_whole(world: World) -> None:
    for name, collection, key, changes, why in OPEN:
        before = await world.collection(collection).find_one({"_id": key})
        await world.collection(collection).update_one({"_id": key}, {"$set": changes})
        outcome = await find_archivable(world.mongodb_url, world.prefix, ArchivePlan(BEFORE))
        assert before is not None
        await world.collection(collection).replace_one({"_id": key}, before)
        assert outcome.found["orders"] == 17, name
        assert sum(outcome.kept[reason] for reason in outcome.kept if why and reason.startswith(why)) in (
            (0,) if not why else (1, 2)
        ), name
    letters = world.client[f"{world.prefix}_operations"]["dead_letters"]
    for status, found in (("dead", 17), ("handled", 18)):
        await letters.replace_one({"_id": "l"}, {"orderId": "confirmed", "status": status}, upsert=True)
        outcome = await find_archivable(world.mongodb_url, world.prefix, ArchivePlan(BEFORE))
        assert outcome.found["orders"] == found


async def test_without_personal_data_the_archive_has_none(world: World, tmp_path: Path) -> None:
    await archive(world, tmp_path / "archive", personal_data=False)
    archived = read_archive(tmp_path / "archive")
    assert archived.keys() == ARCHIVABLE
    assert "Unmistakable" not in str(archived)
    assert archived["confirmed"]["orders"][0]["status"] == "CONFIRMED"
    assert await ArchivedTotals(world.client, world.prefix).personal_files() == 0


async def test_personal_data_in_a_file_is_known_although_its_orders_were_not_deleted(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(SimulatedCrashError):
        await archive(world, tmp_path / "archive", failpoint=crash_at(at.ARCHIVE_WRITTEN, 1), per_file=100)
    assert "Unmistakable" in str(read_archive(tmp_path / "archive"))
    assert await ArchivedTotals(world.client, world.prefix).personal_files() == 1


# --- Killed, changed, damaged. ---


def crash_at(point: str, nth: int) -> Callable[[str], None]:
    remaining = nth

    def failpoint(reached: str) -> None:
        nonlocal remaining
        remaining -= reached == point
        if remaining == 0:
            raise SimulatedCrashError(point)

    return failpoint


CRASHES = [(point, nth) for nth in (1, 2) for point in (at.ARCHIVE_WRITTEN, at.ARCHIVE_VERIFIED, at.ARCHIVE_DELETED)]


async def test_a_run_that_crashes_anywhere_loses_nothing_and_the_next_one_continues(
    world: World, tmp_path: Path
) -> None:
    before, directory = await everything(world), tmp_path / "archive"
    for point, nth in CRASHES:
        with pytest.raises(SimulatedCrashError):
            await archive(world, directory, failpoint=crash_at(point, nth), group=2, per_file=3)
        after = await everything(world)
        assert_nothing_is_lost(before, after, read_archive(directory))
        assert before["orders"].keys() == after["orders"].keys() | read_archive(directory).keys()
        assert (await world.audit()).violations == []
    last = await archive(world, directory)
    assert any("had not been verified" in note or not last.notes for note in [*last.notes, ""])
    after = await everything(world)
    assert before["orders"].keys() - after["orders"].keys() == ARCHIVABLE
    assert_nothing_is_lost(before, after, read_archive(directory))
    assert (await world.audit()).violations == []
    found = verify_archive(directory)
    assert (found.problems, found.notes) == ([], [])
    assert found.orders > len(ARCHIVABLE), "some orders are in two files"


KILLED = """
import asyncio, sys
from datetime import datetime
from pathlib import Path
from operations.archive.archiving import ArchivePlan, archive_orders
from operations.archive.filesystems import allow_any
from shared.failpoints import kill_at

url, prefix, directory, before, point = sys.argv[1:]
plan = ArchivePlan(datetime.fromisoformat(before), group=3, per_file=5)
asyncio.run(archive_orders(url, prefix, Path(directory), plan, check=allow_any, failpoint=kill_at(point)))
"""


KILLS = [(f"{at.ARCHIVE_DELETING}#3", 5), (at.ARCHIVE_WRITTEN, 5), (at.ARCHIVE_VERIFIED, 5), (at.ARCHIVE_DELETED, 8)]
"""Failpoints, and how many orders are gone after each kill: the first run deletes five, the last one three more."""


async def test_killed_in_the_middle_of_a_transaction_or_a_file_it_loses_nothing(world: World, tmp_path: Path) -> None:
    before, directory = await everything(world), tmp_path / "archive"
    async with short_transactions(world):
        for point, gone in KILLS:
            words = [world.mongodb_url, world.prefix, str(directory), BEFORE.isoformat(), point]
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *words)
            assert await process.wait() == -signal.SIGKILL, point
            after = await everything(world)
            assert len(before["orders"]) - len(after["orders"]) == gone, point
            assert_nothing_is_lost(before, after, read_archive(directory))
            assert (await world.audit()).violations == [], point
        (directory / "orders-20260101T000000.000000Z-00001.jsonl.gz.partial").write_bytes(b"\x1f\x8b half of a file")
        last = await archive(world, directory)
    assert ["was incomplete and is removed" in note for note in last.notes] == [True]
    after = await everything(world)
    assert before["orders"].keys() - after["orders"].keys() == ARCHIVABLE
    assert_nothing_is_lost(before, after, read_archive(directory))
    assert (await world.audit()).violations == []
    assert verify_archive(directory).problems == []


async def test_an_order_that_changes_after_it_was_written_stays(world: World, tmp_path: Path) -> None:
    def change(point: str) -> None:
        if point != at.ARCHIVE_VERIFIED:
            return
        with pymongo.MongoClient[Document](world.mongodb_url) as client:
            payments = client[f"{world.prefix}_payments"]["payments"]
            payments.update_one({"_id": "confirmed"}, {"$set": {"note": "a change that no rule knows"}})
            payments.update_one({"_id": "declined"}, {"$set": {"status": "PENDING"}})
            client[f"{world.prefix}_orders"]["orders"].delete_one({"_id": "free"})

    outcome = await archive(world, tmp_path / "archive", failpoint=change, per_file=100)
    orders = (await everything(world))["orders"].keys()
    assert orders & ARCHIVABLE == {"confirmed", "declined"}
    assert outcome.kept["it has changed since it was written to the archive"] == 1
    assert outcome.kept["the release of the payment is not confirmed"] == 1
    assert outcome.kept["another run has archived or deleted it meanwhile"] == 1
    assert outcome.deleted["orders"] == sum(outcome.statuses.values()) == 15
    assert read_archive(tmp_path / "archive").keys() == ARCHIVABLE


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def leave_one_out(path: Path) -> None:
    path.write_bytes(gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(keepends=True)[1:])))


DAMAGES: list[Callable[[Path], Any]] = [flip, truncate, leave_one_out, Path.unlink]


async def test_a_file_that_is_damaged_before_it_is_verified_costs_no_order(world: World, tmp_path: Path) -> None:
    before = await everything(world)
    for number, damage in enumerate(DAMAGES):
        directory = tmp_path / str(number)

        def spoil(point: str, damage: Callable[[Path], Any] = damage, directory: Path = directory) -> None:
            if point == at.ARCHIVE_WRITTEN:
                damage(next(directory.glob("*.jsonl.gz")))

        with pytest.raises(ArchiveError, match=r"is damaged|No such file"):
            await archive(world, directory, failpoint=spoil, per_file=100)
        assert await everything(world) == before
        assert [path.suffix for path in directory.glob("orders-*")] == [".damaged"] * (damage is not Path.unlink)
    assert (await archive(world, tmp_path / "0", per_file=100)).deleted["orders"] == 18
    found = verify_archive(tmp_path / "0")
    assert (found.files, found.orders, found.problems) == (1, 18, [])
    assert ["is not part of the archive" in note for note in found.notes] == [True]


async def test_a_later_check_finds_every_damage(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    await archive(world, directory)
    names = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert len(names) == len({".lock"}) + 2 * 4
    assert set(names.values()) == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", *directory.glob("*.sha256")], cwd=directory, check=True
    )
    victim = sorted(directory.glob("*.jsonl.gz"))[1]
    content = victim.read_bytes()
    for damage in DAMAGES:
        damage(victim)
        found = verify_archive(directory)
        assert (found.files, len(found.problems)) == (3, 1), damage
        assert found.problems[0].startswith(victim.name)
        victim.write_bytes(content)
    assert verify_archive(directory).files == 4
    victim.unlink()
    victim.mkdir()
    assert verify_archive(directory).problems == [f"{victim.name} cannot be read: Is a directory"]
    victim.rmdir()
    victim.write_bytes(content)
    victim.with_name(f"{victim.name}.sha256").unlink()
    found = verify_archive(directory)
    assert (found.files, found.problems) == (3, [])
    assert found.notes == [f"{victim.name} has no checksum: it is not known whether it is complete"]


def test_what_is_no_archive_is_not_right(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not a directory"):
        verify_archive(tmp_path / "elsewhere")
    assert verify_archive(tmp_path).problems == [f"there is no verified file in {tmp_path}"]


async def test_other_files_of_the_directory_are_left_alone(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    directory.mkdir(mode=0o700)
    name = "orders-20260101T000000.000000Z-00001.jsonl.gz"
    others = {"upload.partial", "notes.jsonl.gz", "orders-2025.jsonl.gz", "orders.jsonl.gz.partial"}
    for other in others:
        (directory / other).write_text("another program's")
    folders = {name, f"{name}.partial"}
    for folder in folders:
        (directory / folder).mkdir()
    outcome = await archive(world, directory, per_file=100)
    assert (outcome.notes, outcome.deleted["orders"]) == ([], 18)
    (file,) = outcome.files
    assert {path.name for path in directory.iterdir()} == {".lock", file, f"{file}.sha256"} | others | folders
    found = verify_archive(directory)
    assert (found.files, found.problems, found.notes) == (1, [], [])


def test_an_error_of_the_disk_is_not_hidden_by_the_next_one(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "orders")
    (tmp_path / "orders.partial").unlink()
    (tmp_path / "orders.partial").mkdir()
    writer.discard()


def test_a_directory_that_is_refused_is_not_created(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise ArchiveError(f"{path} is in memory")

    with pytest.raises(ArchiveError, match="in memory"), ArchiveDirectory(tmp_path / "archive", refuse).locked():
        pass
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_that_cannot_be_written_to_costs_no_order(world: World, tmp_path: Path) -> None:
    before = await everything(world)
    (tmp_path / "file").touch()
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "taken").mkdir(mode=0o700)
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    with ArchiveDirectory(tmp_path / "taken", allow_any).locked():
        for name, complaint in (
            ("file/archive", "Not a directory"),
            ("file", "is not a directory"),
            ("dangling", "is not a directory"),
            ("shared", "chmod 700"),
            ("taken", "another process"),
        ):
            with pytest.raises(ArchiveError, match=complaint):
                await archive(world, tmp_path / name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(ArchiveError, match="partial: File too large"):
            await archive(world, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert [path.name for path in (tmp_path / "full").iterdir()] == [".lock"]
    assert await everything(world) == before


async def test_the_books_balance_at_all_times_during_a_run(world: World, tmp_path: Path) -> None:
    for index in range(60):
        order(world, f"old-{index:02}", "CONFIRMED", items=(("p9", 1),))
    world.add("products", _id="p9", kind="goods", quantity=140, supplied=200, version=9, moving={})
    await world.store()
    running = asyncio.create_task(archive(world, tmp_path / "archive", group=2, per_file=20))
    audits = 0
    while not running.done() or audits == 0:
        assert (await world.audit(page=10)).violations == []
        audits += 1
    assert (await running).deleted["orders"] == 78


async def test_a_run_that_fails_half_way_tells_what_it_did(world: World, tmp_path: Path) -> None:
    def spoil(point: str) -> None:
        if point == at.ARCHIVE_WRITTEN and len(done.files) == 2:
            flip(max((tmp_path / "archive").glob("*.jsonl.gz")))

    done = ArchiveResult()
    with pytest.raises(ArchiveError, match="is damaged"):
        await archive(world, tmp_path / "archive", failpoint=spoil, result=done)
    assert (len(done.files), done.deleted["orders"], sum(done.statuses.values())) == (2, 10, 10)


async def test_of_two_runs_at_once_each_says_what_became_of_its_orders(world: World, tmp_path: Path) -> None:
    both_have_written = asyncio.Barrier(2)

    async def wait(_file: VerifiedFile) -> None:
        await both_have_written.wait()

    runs = (archive(world, tmp_path / name, per_file=100, on_verified=wait) for name in "ab")
    outcomes = await asyncio.gather(*runs)
    for outcome in outcomes:
        gone = outcome.kept["another run has archived or deleted it meanwhile"]
        assert outcome.deleted["orders"] + gone == outcome.found["orders"] == 18
    assert sum(outcome.deleted["orders"] for outcome in outcomes) == 18
    report = await world.audit()
    assert report.violations == []
    assert sum(report.information["archivedOrders"].values()) == 18


async def test_an_order_placed_again_under_the_id_of_an_archived_one_is_another_order(
    world: World, tmp_path: Path
) -> None:
    before, later = await everything(world), timedelta(minutes=5)
    await archive(world, tmp_path / "archive")
    for name in KINDS.values():
        for key in {"confirmed", "completed"} & before[name].keys():
            document = before[name][key]
            if name == "orders":
                document |= {"createdAt": document["createdAt"] + later}
            if key == "completed" and name in ("orders", "jobs"):
                document |= {"server": {"ip": "103.181.9.77"}} if name == "orders" else {"ip": "103.181.9.77"}
            await world.collection(name).replace_one({"_id": key}, document, upsert=True)
    another = {"_id": "103.181.9.77", "orderId": "completed", "wrong": False, "at": NOW - timedelta(days=9)}
    await world.collection("addresses").insert_one(another)
    for item in before["orders"]["confirmed"]["items"]:
        sold = {"$inc": {"quantity": -item["quantity"]}}
        await world.collection("products").update_one({"_id": item["productId"]}, sold)
    assert (await world.audit()).violations == []
    outcome = await archive(world, tmp_path / "archive")
    assert outcome.deleted["orders"] == 2, outcome.kept
    assert (await world.audit()).violations == []
    found = read_orders(tmp_path / "archive")
    assert len(found) == len(ARCHIVABLE) + 2
    ips = [address["_id"] for (key, _), got in found.items() if key == "completed" for address in got["addresses"]]
    assert ips == ["103.181.9.5", "103.181.90.9", "103.181.9.77"]


async def test_cards_captured_later_and_charged_over_stripe_are_archived(world: World, tmp_path: Path) -> None:
    populate_captures(world)
    await world.store()
    charge = await world.collection("gateway_charges").find_one_and_delete({"_id": "confirmed"})
    assert charge is not None
    await world.collection("payments").update_one({"_id": "confirmed"}, {"$set": {"transactionId": "pi_1"}})
    money = {"amount": charge["amount"], "currency": charge["currency"]}
    intents, authorized = world.collection("stripe_intents"), {"authorizedAt": NOW - timedelta(days=2)}
    await intents.insert_one({"_id": "confirmed", "intentId": "pi_1", **money, **authorized})
    await archive(world, tmp_path / "archive")
    assert await world.collection("orders").find_one({"_id": "confirmed"}) is not None
    assert read_archive(tmp_path / "archive").keys() == ARCHIVABLE - {"confirmed"} | {"captured", "voided"}

    await intents.update_one({"_id": "confirmed"}, {"$set": {"chargedAt": NOW - timedelta(days=1)}})
    outcome = await archive(world, tmp_path / "archive")
    assert (outcome.deleted["orders"], outcome.deleted["intents"]) == (1, 1)
    archived = read_archive(tmp_path / "archive")
    assert archived["confirmed"]["intents"][0]["intentId"] == "pi_1"
    assert archived["captured"]["payments"][0]["captureOnConfirm"] is True
    assert (await world.audit()).violations == []


ERASURE = r"""
for FILE in orders-*.jsonl.gz; do
  zcat "$FILE" | jq -e -n --arg u "$u" '[inputs | .records.orders[0].userId == $u] | any' > /dev/null || continue
  zcat "$FILE" \
    | jq -c --arg u "$u" 'if .records.orders[0].userId == $u then del(.records.orders[].personal) else . end' \
    | gzip > "$FILE.new" && mv "$FILE.new" "$FILE" && sha256sum "$FILE" > "$FILE.sha256"
done
"""
"""The recipe of docs/retention.md."""


@pytest.mark.skipif(shutil.which("jq") is None, reason="the recipe needs jq")
async def test_the_documented_erasure_finds_every_user(world: World, tmp_path: Path) -> None:
    assert ERASURE.strip() in Path("docs/retention.md").read_text()
    directory, users = tmp_path / "archive", {"confirmed": "Jürgen", "free": 'a"b\\c', "gone": "u/1 'x'"}
    for order_id, user in users.items():
        await world.collection("orders").update_one({"_id": order_id}, {"$set": {"userId": user, "personal": PERSONAL}})
    await archive(world, directory)
    lines = b"".join(gzip.decompress(path.read_bytes()) for path in directory.glob("*.gz"))
    assert "Jürgen".encode() in lines, "zgrep finds a name as it is written"
    before = read_archive(directory)
    for number, (order_id, user) in enumerate(users.items(), 1):
        subprocess.run(["bash", "-c", f"set -o pipefail; u=$1\n{ERASURE}", "bash", user], cwd=directory, check=True)
        after = read_archive(directory)
        assert "personal" not in after[order_id]["orders"][0]
        assert str(after).count("Unmistakable") == len(users) - number
    assert verify_archive(directory).problems == []
    for order_id in users:
        before[order_id]["orders"][0].pop("personal")
    assert after == before


# --- The command, over what real services have recorded. ---


async def run_command(stack: Stack, *words: str, answer: str = "", **more: str) -> tuple[int, str, str]:
    """Run `ordersaga` with these arguments; return its exit status and output."""
    environment = {
        "ORDERSAGA_MONGODB_URL": stack.mongodb_url,
        "ORDERSAGA_AMQP_URL": stack.amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": stack.database_prefix,
        "ORDERSAGA_ORDER_URL": stack.url("order"),
        "ORDERSAGA_API_KEY": ADMIN_KEY,
        "COLUMNS": "120",
    }
    return await commands.run_command(*words, environment=environment | more, answer=answer)


async def assert_errors_are_documents(stack: Stack, words: tuple[str, ...], tmp_path: Path) -> None:
    """With --json, every error is one document, with its exit status."""
    (tmp_path / "open").mkdir(mode=0o755)
    run = (*words[:3], "--to", str(tmp_path / "open"), "--allow-volatile", "--yes", "--json")
    status, output, _ = await run_command(stack, *run)
    document = json.loads(output)
    assert (status, "chmod 700" in document["error"], document["deleted"]["orders"]) == (1, True, 0)
    status, output, _ = await run_command(stack, "archive", "--verify", str(tmp_path / "none"), "--json")
    assert (status, list(json.loads(output))) == (1, ["error"])
    nowhere = {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/"}
    status, output, _ = await run_command(stack, *words, "--dry-run", "--json", **nowhere)
    assert (status, list(json.loads(output))) == (3, ["error"])


async def test_the_command_over_the_records_of_real_services(
    mongodb_url: str, clean_broker: str, database_prefix: str, tmp_path: Path
) -> None:
    async with (
        run_stack(mongodb_url, clean_broker, database_prefix) as stack,
        pymongo.AsyncMongoClient[dict[str, Any]](mongodb_url, tz_aware=True) as client,
    ):
        await stack.start()
        await stack.stock("p1", 9)
        person = secrets.token_hex(8)
        old = [await stack.place(customer={"name": person}), await stack.place(), await stack.place()]
        old += [await stack.place(payment={"method": "card", "token": "tok_declined"})]
        await stack.all_settled(old)
        for path, body in (
            (f"{old[1]}/deliver", {}),
            (f"{old[2]}/refunds", {"items": [{"productId": "p1", "quantity": 1}]}),
        ):
            more = {"restock": True} if body else {}
            answer = await stack.client.post(f"{stack.url('order')}/orders/{path}", json=body | more)
            assert answer.status_code == 202, answer.text
        await stack.all_settled(old)
        await all_published(client, database_prefix)
        await grow_old(client, database_prefix, 100)
        recent = await stack.place()
        await stack.all_settled([recent])
        stock = await stack.inventory("p1")
        await stack.assert_books_balance()

        directory = str(tmp_path / "archive")
        words: tuple[str, ...] = ("archive", "--older-than", "90d", "--to", directory)
        verify = ("archive", "--verify", directory)
        for wrong in (("archive",), words[:3], (*words, "--json"), (*words, *verify[1:]), (*verify, "--yes")):
            assert (await run_command(stack, *wrong))[0] == 2, wrong
        await assert_errors_are_documents(stack, words, tmp_path)
        # The tests may run in a container.
        words += ("--allow-volatile",)
        status, output, _ = await run_command(stack, *words, answer="n\n")
        assert (status, "4 orders" in " ".join(output.split())) == (1, True)
        assert not Path(directory).exists()
        status, output, errors = await run_command(stack, *words, "--json", "--yes")
        assert status == 0, output + errors
        done = json.loads(output)
        assert done["found"] == done["deleted"]
        assert (done["directory"], sum(done["statuses"].values())) == (directory, 4)
        assert done["deleted"] == dict.fromkeys(REMOVED_KINDS, 0) | dict.fromkeys(
            ("orders", "reservations", "payments", "charges"), 4
        )
        await stack.assert_books_balance()
        assert await stack.inventory("p1") == stock
        for order_id in old:
            assert (await stack.client.get(f"{stack.url('order')}/orders/{order_id}")).status_code == 404
        assert (await stack.order(recent))["orderId"] == recent
        assert read_archive(Path(directory)).keys() == set(old)

        assert "one of the 4 archived orders" in (await run_command(stack, "order", "timeline", old[0]))[2]
        status, output, _ = await run_command(stack, "archive", "--verify", directory, "--json")
        assert (status, json.loads(output)["orders"]) == (0, 4)
        truncate(next(Path(directory).glob("*.jsonl.gz")))
        status, output, _ = await run_command(stack, "archive", "--verify", directory)
        assert (status, "is damaged" in output) == (1, True)
        status, output, errors = await run_command(stack, "erase", "--user", "u1", "--yes", "--json")
        assert status == 0, errors
        assert (status, json.loads(output)["archiveFilesWithPersonalData"]) == (0, 1)
        log = client[f"{database_prefix}_operations"]["actions"]
        (logged,) = [entry async for entry in log.find({"action": "orders.archive"})]
        assert [logged["subject"]] == [str(path) for path in Path(directory).glob("*.jsonl.gz")]
        checksum = Path(f"{logged['subject']}.sha256").read_text().split()[0]
        assert logged["outcome"] == f"4 orders written and verified, deleted next; sha256 {checksum}"

        found = await check_archive(mongodb_url, database_prefix)
        assert found is not None
        assert (found.outcome, "4 orders are in files" in found.detail) == ("ok", True)
        Path(directory).chmod(0o750)
        assert (await check_archive(mongodb_url, database_prefix) or found).outcome == "wrong"
        Path(directory).rename(tmp_path / "elsewhere")
        assert (await check_archive(mongodb_url, database_prefix) or found).outcome == "note"
