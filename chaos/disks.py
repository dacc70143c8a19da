"""Small disks for servers, in memory, which can get full; and servers whose disk gets slow.

A disk is mounted before its server starts, and only among the mounts of the run (see `namespaces`), which end with it.
It is filled by shrinking it to what is on it, which takes no memory.
"""

import asyncio
import ctypes
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from operations.stack.environment import server_environment
from operations.stack.layout import Layout
from operations.stack.processes import Child, spawn
from operations.stack.program import Command

SIZE = 8 << 30
"""The bytes of a disk that is not full. Only what is written takes memory."""
BELOW_ALARM = 20_000_000
"""The free bytes at which RabbitMQ blocks publishers: less than its default limit of 50 MB, and enough until then."""
STRACE = "strace"
SLOWING_GRACE_SECONDS = 10.0
_REMOUNT, _DETACH = 0x20, 0x2
_ATTEMPTS = 20
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A disk in memory, mounted on a directory."""

    directory: Path

    def mount(self) -> None:
        """Mount it, empty. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mount(0, SIZE)

    def fill(self, left: int = 0) -> None:
        """Leave only that many bytes free, as if something else had taken the others. Raises OSError."""
        for _ in range(_ATTEMPTS):
            try:
                self._mount(_REMOUNT, self._used() + left)
            except OSError as error:
                if error.errno != errno.EINVAL:  # its server has written more meanwhile
                    raise
            else:
                return
        raise OSError(errno.EBUSY, f"{self.directory} is written to too fast to be filled")

    def empty(self) -> None:
        """Give back what `fill` has taken; may be repeated. Raises OSError."""
        self._mount(_REMOUNT, SIZE)

    def unmount(self) -> None:
        """Unmount it, with all that is on it, if it is mounted. Raises OSError."""
        if self.directory.is_mount():
            _check(ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(self.directory), _DETACH))

    def keep(self) -> None:
        """Unmount it, and leave what is on it in its directory. Raises OSError."""
        copy = self.directory.with_name(f"{self.directory.name}.copy")
        shutil.copytree(self.directory, copy, symlinks=True)
        self.unmount()
        self.directory.rmdir()
        copy.rename(self.directory)

    def _used(self) -> int:
        found = os.statvfs(self.directory)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _mount(self, flags: int, size: int) -> None:
        options = f"size={size},mode=700".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.mount(b"tmpfs", os.fsencode(self.directory), b"tmpfs", flags, options))


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def disk_of(layout: Layout, server: str) -> SmallDisk:
    """Return the disk for the data of a server: with the name of its directory. Logs are elsewhere."""
    directory = layout.root / server
    return SmallDisk(directory / "data" if server.startswith(layout.rabbitmq.name) else directory)


def slowing_missing() -> str | None:
    """Return why no disk can be slow."""
    if os.geteuid() != 0:
        return "needs root"
    return None if shutil.which(STRACE) else "needs strace (apt-get install strace)"


async def slow_down(pid: int, seconds: float, log: Path, stack: Path) -> Child:
    """Let every write that a process waits for until it is on the disk take longer by so many seconds.

    That lasts until the returned process ends, however it ends. Raises LookupError if there is no process to slow down,
    OSError if there is no strace.
    """
    calls = "fsync,fdatasync"
    inject = f"inject={calls}:delay_enter={round(seconds * 1_000_000)}"
    program = shutil.which(STRACE) or STRACE
    argv = (program, "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", "-e", inject, "-p", str(pid))
    slowing = await spawn(Command(argv, server_environment(os.environ)), log, stack)
    while not _is_traced(pid):
        if not slowing.running:
            raise LookupError(f"strace ended: {' '.join(slowing.last_lines())}")
        await asyncio.sleep(_POLL_SECONDS)
    return slowing


def _is_traced(pid: int) -> bool:
    """Return whether all threads of a process are traced."""
    try:
        threads = [thread.read_text() for thread in Path(f"/proc/{pid}/task").glob("*/status")]
    except FileNotFoundError:  # a thread has ended meanwhile
        return False
    return bool(threads) and not any("TracerPid:\t0\n" in thread for thread in threads)
