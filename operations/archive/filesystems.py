"""Tells filesystems that forget their files: in memory, or the top layer of a container. Pure but for `check_lasting`.

Orders leave the databases for files, so those files must outlive the process, the container and the machine's uptime.
"""

import re
from pathlib import Path

from operations.archive.errors import ArchiveError

MOUNTS = Path("/proc/self/mountinfo")

VOLATILE = {
    "tmpfs": "in memory",
    "ramfs": "in memory",
    "devtmpfs": "in memory",
    "overlay": "the layer of a container",
    "aufs": "the layer of a container",
    "fuse.fuse-overlayfs": "the layer of a container",
}
"""Types of filesystems, and where their files are."""


def check_lasting(path: Path) -> None:
    """Raise ArchiveError if the filesystem of this path, which must be absolute, forgets its files."""
    try:
        mounts = MOUNTS.read_text()
    except FileNotFoundError:
        return  # Not Linux, which is where containers are.
    if kind := volatile_filesystem(path, mounts):
        raise ArchiveError(
            f"{path} is on {kind} ({VOLATILE[kind]}): its files are gone when the container or the machine ends. "
            "Name a directory on a disk (in a container, one that is mounted into it), or add --allow-volatile"
        )


def allow_any(_path: Path) -> None:
    """Accept every filesystem."""


def volatile_filesystem(path: Path, mounts: str) -> str | None:
    """Return the type of the path's filesystem if it forgets its files. `mounts` is as in /proc/self/mountinfo."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if not separator or len(fields) < 5 or not types:
            continue
        mounted_at = Path(_unescaped(fields[4]))
        # Of two that are mounted at the same place, the later one is visible.
        if path.is_relative_to(mounted_at) and len(mounted_at.parts) >= best:
            best, kind = len(mounted_at.parts), types[0]
    return kind if kind in VOLATILE else None


def _unescaped(text: str) -> str:
    """Decode what the kernel writes for blanks and backslashes: their octal codes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
