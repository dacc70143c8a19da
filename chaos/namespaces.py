"""A network and mounts of its own for a run: nothing that is cut or mounted reaches the machine or outlives the run.

The kernel ends both with the last process in them, also if everything there was killed. Processes that are started
afterwards are in them too.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
SHARED_MEMORY = b"/dev/shm"
_INTERFACE_REQUEST = "16sh14x"
_LOOPBACK = b"lo"


class NamespaceError(Exception):
    """The kernel refuses namespaces; the message says why."""


_entered: set[Path] = set()
"""The networks that `enter` has made."""


def missing() -> str | None:
    """Return why this thread has no network and no mounts of its own; None if it, or what started it, entered them."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root"
    return None if _network() in _entered else "needs a network and mounts of its own (CAP_SYS_ADMIN)"


def _network() -> Path:
    return Path("/proc/thread-self/ns/net").readlink()


def enter() -> None:
    """Give this thread, and what it starts from now on, a network with only the loopback, and mounts of its own.

    What its processes leave in shared memory goes with the mounts.

    Raises NamespaceError if that is not permitted.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NamespaceError("a network and mounts of its own need Linux and root")
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "a network and mounts of its own")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mounts that others do not see")
    _check(libc.mount(b"tmpfs", SHARED_MEMORY, b"tmpfs", 0, None), "shared memory of its own")
    _raise_loopback()
    _entered.add(_network())


def _check(status: int, wanted: str) -> None:
    if status != 0:
        raise NamespaceError(f"{wanted} cannot be had: {os.strerror(ctypes.get_errno())}")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack(_INTERFACE_REQUEST, _LOOPBACK, 0)
        flags = struct.unpack(_INTERFACE_REQUEST, fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(_INTERFACE_REQUEST, _LOOPBACK, flags | IFF_UP))
