"""What a backup says about itself: `manifest.json`, the last file that is written. Pure: no I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import bson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from operations.backup.errors import BackupError
from shared import schema

NAME = "manifest.json"
FORMAT = 1
"""The layout of the directory and of the manifest. A release reads its own format and earlier ones."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class ClusterTime(_Part):
    """The point in time that everything was read as of: MongoDB's timestamp, and the time of day."""

    seconds: int
    increment: int
    at: datetime


class CopiedCollection(_Part):
    """A collection: its documents, and their size and hash as they are in the database, in the order of `_id`."""

    database: str
    name: str
    documents: int
    size: int
    sha256: str

    @property
    def namespace(self) -> str:
        """The collection's full name."""
        return f"{self.database}.{self.name}"

    @property
    def documents_path(self) -> str:
        """The file of its documents, in the backup."""
        return f"{self.database}/{self.name}.bson.gz"

    @property
    def metadata_path(self) -> str:
        """The file of its options and indexes, in the backup."""
        return f"{self.database}/{self.name}.metadata.json.gz"


class CopiedFile(_Part):
    """A file of the backup."""

    path: str
    size: int
    sha256: str


class Versions(_Part):
    """The software that made the backup; `schema` is a digest of the declared collections of each service."""

    ordersaga: str
    mongodb: str
    schemas: dict[str, str]


class Verdict(_Part):
    """The result of an audit right after the records were read; `ok` is None if it could not run, for a reason."""

    ok: bool | None
    at: datetime
    violations: list[str] = []
    reason: str | None = None


class Outside(_Part):
    """What the provider of servers had for sale: free addresses by package; None if it was not asked, for a reason."""

    free_addresses: dict[str, list[str]] | None = None
    reason: str | None = None


class Manifest(_Part):
    """Everything about a backup."""

    format: int = FORMAT
    database_prefix: str
    cluster_time: ClusterTime
    began_at: datetime
    copied_at: datetime
    """When the last record was copied; the audit came after that."""
    versions: Versions
    collections: list[CopiedCollection]
    files: list[CopiedFile]
    left_out: list[str] = []
    audit: Verdict
    outside: Outside = Outside()

    @property
    def documents(self) -> int:
        """The number of all documents."""
        return sum(collection.documents for collection in self.collections)

    @property
    def size(self) -> int:
        """The size of all documents, uncompressed."""
        return sum(collection.size for collection in self.collections)

    def to_bytes(self) -> bytes:
        """Write the manifest as JSON."""
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON document shows it."""
        shown: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return shown


def read_manifest(content: bytes) -> Manifest:
    """Read a manifest. Raises BackupError if it is none, or is of a newer release."""
    try:
        known = json.loads(content)
    except ValueError as error:
        raise BackupError(f"{NAME} is not JSON: {error}") from error
    of = known.get("format") if isinstance(known, Mapping) else None
    if isinstance(of, int) and of > FORMAT:
        raise BackupError(f"the backup has format {of}, this release reads {FORMAT} at most: install a newer release")
    try:
        return Manifest.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise BackupError(f"{NAME} is not the manifest of a backup: {where}: {first['msg']}") from error


def present_version() -> str:
    """Return the version of this release."""
    return version("ordersaga")


def schema_digest(collections: schema.Collections) -> str:
    """Return a digest that changes with the declared indexes and validators of a service."""
    declared = {
        name: {"indexes": [index.document for index in wanted.indexes], "validator": wanted.validator}
        for name, wanted in sorted(collections.items())
    }
    return hashlib.sha256(bson.encode(declared)).hexdigest()[:16]


def incompatibility(manifest: Manifest, prefix: str, known: Mapping[str, Sequence[str]]) -> str | None:
    """Return why a backup cannot be restored into the stack with this prefix, None if it can.

    `known` are the collections that this release declares, by their database.
    """
    if manifest.database_prefix != prefix:
        return (
            f"the backup has the databases {manifest.database_prefix}_*, this stack has {prefix}_*: "
            f"set ORDERSAGA_DATABASE_PREFIX={manifest.database_prefix} for the stack and for this command"
        )
    if numbers(manifest.versions.ordersaga) > numbers(present_version()):
        return (
            f"the backup was made by ordersaga {manifest.versions.ordersaga}, this is {present_version()}: "
            "install that release or a later one"
        )
    unknown = [copied.namespace for copied in manifest.collections if copied.name not in known.get(copied.database, ())]
    if unknown:
        return f"this release has no collection {', '.join(unknown)}: install the release that made the backup"
    return None


def differences(manifest: Manifest, schemas: Mapping[str, str], mongodb: str) -> list[str]:
    """Return what an operator should know about the versions, one line each."""
    notes = []
    if numbers(manifest.versions.mongodb)[:2] > numbers(mongodb)[:2]:
        notes.append(f"the backup is of MongoDB {manifest.versions.mongodb}, this is the older {mongodb}")
    changed = [name for name, digest in manifest.versions.schemas.items() if schemas.get(name) != digest]
    if changed:
        notes.append(
            f"the collections of {', '.join(changed)} are declared differently since {manifest.versions.ordersaga}: "
            "the indexes are those of this release"
        )
    return notes


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as (0, 1, 0), without what follows them."""
    parts = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)
