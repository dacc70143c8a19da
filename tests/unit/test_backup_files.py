"""The files of a backup: what is written is read back, and whatever else is in a file is an error."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from operations.backup.errors import BackupError, UnreadableError
from operations.backup.files import (
    CompressedFile,
    Content,
    HashedFile,
    read_compressed,
    spans,
    whole_documents,
)
from operations.backup.manifest import (
    ClusterTime,
    CopiedCollection,
    CopiedFile,
    Manifest,
    Outside,
    Verdict,
    Versions,
    differences,
    incompatibility,
    numbers,
    present_version,
    read_manifest,
    schema_digest,
)
from operations.stack.database_schemas import all_schemas

KEYS = some.text(some.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), max_size=8)
VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats(allow_nan=False)
    | some.text(some.characters(blacklist_categories=["Cs"]))
    | some.binary(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BATCHES = some.lists(some.lists(some.dictionaries(KEYS, VALUES, max_size=5), max_size=5), max_size=5)
TIMES = some.datetimes(timezones=some.just(bson.tz_util.utc))
TEXTS = some.text(max_size=20)
COUNTS = some.integers(0, 2**53)


def write(path: Path, batches: list[list[dict[str, Any]]]) -> tuple[Content, HashedFile]:
    content = Content()
    with CompressedFile(path) as file:
        for batch in batches:
            encoded = b"".join(map(bson.encode, batch))
            content.add(encoded)
            file.write(encoded)
    return content, file.hashed


def read(path: Path) -> tuple[Content, HashedFile, list[dict[str, Any]]]:
    content, documents = Content(), []
    with path.open("rb") as file:
        hashed = HashedFile(file)
        for batch in whole_documents(read_compressed(hashed)):
            content.add(batch)
            documents += [bson.decode(batch[start:end]) for start, end in spans(batch)]
        hashed.finish()
    return content, hashed, documents


FEW = settings(max_examples=30)
"""Each example writes a file, which waits for the disk."""


@FEW
@given(batches=BATCHES)
def test_documents_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, batches: Any) -> None:
    path = tmp_path_factory.mktemp("backup") / "orders.bson.gz"
    written, as_file = write(path, batches)
    content, hashed, documents = read(path)
    assert documents == [document for batch in batches for document in batch]
    assert (content.documents, content.size, content.sha256) == (written.documents, written.size, written.sha256)
    assert (hashed.size, hashed.sha256) == (as_file.size, as_file.sha256)
    assert hashed.size == path.stat().st_size
    assert gzip.decompress(path.read_bytes()) == b"".join(bson.encode(d) for batch in batches for d in batch)


def test_a_document_may_be_bigger_than_a_block(tmp_path: Path) -> None:
    big = [{"_id": n, "text": bytes(3_000_000)} for n in range(3)]
    write(tmp_path / "file", [big])
    assert read(tmp_path / "file")[2] == big


def test_a_file_is_private(tmp_path: Path) -> None:
    write(tmp_path / "file", [[{"_id": 1}]])
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@FEW
@given(cut=some.integers(1, 200))
def test_a_file_that_was_cut_off_is_an_error(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("backup") / "file"
    write(path, [[{"_id": n, "text": hashlib.sha256(str(n).encode()).hexdigest()} for n in range(50)]])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UnreadableError):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"text", bson.encode({"_id": 1})[:-1], bson.encode({"_id": 1}) + b"\x01", b"\x00\x00\x00\x00\x00", b"\xff" * 9],
    ids=["text", "cut off", "too long", "no length", "negative length"],
)
def test_what_is_not_bson_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(gzip.compress(content))
    with pytest.raises(UnreadableError):
        read(tmp_path / "file")


def test_anything_after_the_documents_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "file", [[{"_id": 1}]])
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes() + b"more")
    with pytest.raises(UnreadableError):
        read(tmp_path / "file")


# --- The manifest. ---

MANIFESTS = some.builds(
    Manifest,
    database_prefix=TEXTS,
    cluster_time=some.builds(ClusterTime, seconds=COUNTS, increment=COUNTS, at=TIMES),
    began_at=TIMES,
    copied_at=TIMES,
    versions=some.builds(Versions, ordersaga=TEXTS, mongodb=TEXTS, schemas=some.dictionaries(TEXTS, TEXTS, max_size=3)),
    collections=some.lists(
        some.builds(CopiedCollection, database=TEXTS, name=TEXTS, documents=COUNTS, size=COUNTS, sha256=TEXTS),
        max_size=3,
    ),
    files=some.lists(some.builds(CopiedFile, path=TEXTS, size=COUNTS, sha256=TEXTS), max_size=3),
    left_out=some.lists(TEXTS, max_size=3),
    audit=some.builds(
        Verdict,
        ok=some.none() | some.booleans(),
        at=TIMES,
        violations=some.lists(TEXTS, max_size=3),
        reason=some.none() | TEXTS,
    ),
    outside=some.builds(
        Outside,
        free_addresses=some.none() | some.dictionaries(TEXTS, some.lists(TEXTS, max_size=3), max_size=3),
        reason=some.none() | TEXTS,
    ),
)


@given(manifest=MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert read_manifest(manifest.to_bytes()) == manifest


def a_manifest(**changes: Any) -> Manifest:
    moment = "2026-01-02T03:04:05Z"
    versions = {"ordersaga": present_version(), "mongodb": "6.0.5", "schemas": {}} | changes.pop("versions", {})
    known = {
        "databasePrefix": "shop",
        "clusterTime": {"seconds": 1, "increment": 1, "at": moment},
        "beganAt": moment,
        "copiedAt": moment,
        "versions": versions,
        "collections": [],
        "files": [],
        "audit": {"ok": True, "at": moment},
    }
    return Manifest.model_validate(known | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "manifest.json is not JSON"),
        (b"[]", "manifest.json is not the manifest of a backup: the document"),
        (b'{"format": 1}', "manifest.json is not the manifest of a backup: databasePrefix: Field required"),
        (b'{"format": 2}', "the backup has format 2, this release reads 1 at most: install a newer release"),
    ],
)
def test_what_is_no_manifest_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(BackupError, match=message):
        read_manifest(content)


KNOWN = {"shop_orders": ["orders"]}


def test_a_backup_of_this_release_can_be_restored() -> None:
    copied = {"database": "shop_orders", "name": "orders", "documents": 1, "size": 1, "sha256": ""}
    assert incompatibility(a_manifest(collections=[copied]), "shop", KNOWN) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"databasePrefix": "other"}, "set ORDERSAGA_DATABASE_PREFIX=other for the stack and for this command"),
        ({"versions": {"ordersaga": "99.0.0"}}, "the backup was made by ordersaga 99.0.0, this is "),
        (
            {
                "collections": [
                    {"database": "shop_orders", "name": "../x", "documents": 1, "size": 1, "sha256": ""},
                ]
            },
            "this release has no collection shop_orders.../x",
        ),
    ],
)
def test_a_backup_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert reason in (incompatibility(a_manifest(**changes), "shop", KNOWN) or "")


def test_an_older_mongodb_and_another_schema_are_noted() -> None:
    manifest = a_manifest(versions={"mongodb": "7.0.1", "schemas": {"order": "a", "payment": "b"}})
    notes = differences(manifest, {"order": "a", "payment": "c"}, "6.0.27")
    assert notes[0] == "the backup is of MongoDB 7.0.1, this is the older 6.0.27"
    assert notes[1].startswith("the collections of payment are declared differently since ")
    assert differences(manifest, {"order": "a", "payment": "b"}, "7.0.0") == []


def test_versions_are_compared_as_numbers() -> None:
    assert numbers("0.10.1") > numbers("0.9.12")
    assert numbers("1.2rc1") == (1, 2)


def test_the_digest_of_a_schema_changes_with_it() -> None:
    declared = all_schemas()
    digests = {schema_digest(of_service) for of_service in declared.values()}
    assert len(digests) == len(declared)
    some_gone = {name: found for name, found in declared["order"].items() if name != "actions"}
    assert schema_digest(some_gone) not in digests
