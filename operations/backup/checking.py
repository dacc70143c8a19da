"""Verifies the files of a backup: that each is there, is as it was written, and has what the manifest says."""

from collections.abc import Callable, Iterator
from pathlib import Path

from operations.archive.files import file_errors
from operations.backup.directory import PARTIAL
from operations.backup.errors import BackupError, DamagedError, UnreadableError
from operations.backup.files import Content, HashedFile, read_compressed, whole_documents
from operations.backup.manifest import NAME, CopiedCollection, Manifest, read_manifest

Progress = Callable[[int], None]
"""Receives the number of documents checked since the last call."""


def open_backup(directory: Path) -> Manifest:
    """Return the manifest of a backup. Raises BackupError if the directory has no complete one, or a newer one."""
    with file_errors(directory):
        try:
            content = (directory / NAME).read_bytes()
        except FileNotFoundError:
            partial = directory.name.endswith(PARTIAL)
            why = "it was interrupted, or is still being written" if partial else "it is no complete backup"
            raise BackupError(f"there is no {NAME} in {directory}: {why}") from None
    return read_manifest(content)


def verify_backup(directory: Path, manifest: Manifest, on_progress: Progress = lambda _: None) -> None:
    """Read all files of a backup and compare them with its manifest. Raises DamagedError, with every problem."""
    with file_errors(directory):
        problems = [*_problems(directory, manifest, on_progress)]
    if problems:
        raise DamagedError(directory, problems)


def _problems(directory: Path, manifest: Manifest, on_progress: Progress) -> Iterator[str]:
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()} - {NAME}
    listed = {file.path: file for file in manifest.files}
    copied = {collection.documents_path: collection for collection in manifest.collections}
    needed = copied.keys() | {collection.metadata_path for collection in manifest.collections}
    yield from (f"{path} is missing" for path in sorted((listed.keys() | needed) - found))
    yield from (f"{path} is not part of the backup" for path in sorted(found - listed.keys()))
    for path in sorted(found & listed.keys()):
        try:
            content, hashed = _read(directory / path, is_documents=path in copied)
        except UnreadableError as error:
            yield f"{path} is damaged: {error}"
            continue
        on_progress(content.documents)
        if (hashed.size, hashed.sha256) != (listed[path].size, listed[path].sha256):
            yield f"{path} is damaged: its hash is not that in {NAME}"
        elif path in copied and (difference := difference_of(copied[path], content)):
            yield f"{path} is damaged: {difference}"


def _read(path: Path, *, is_documents: bool) -> tuple[Content, HashedFile]:
    content = Content()
    with path.open("rb") as file:
        hashed = HashedFile(file)
        blocks = read_compressed(hashed)
        if is_documents:
            for batch in whole_documents(blocks):
                content.add(batch)
        else:
            for _ in blocks:
                pass
        hashed.finish()
    return content, hashed


def difference_of(copied: CopiedCollection, content: Content) -> str | None:
    """Return how documents differ from those that were copied, None if they are the same."""
    if content.documents != copied.documents:
        return f"it has {content.documents:,} documents, not {copied.documents:,}"
    return None if content.sha256 == copied.sha256 else "its documents are not those that were copied"
