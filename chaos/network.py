"""Cuts processes of this machine off from each other as a lost network does: packets vanish, and nobody is told.

All of a stack listens on 127.0.0.1, so addresses do not tell its processes apart. A server is known by its ports. A
client is known by its control group for the connections that it opens from now on, because a socket keeps the group in
which it was made, and by the port at its own end for those that it has. What they send each other is marked when it is
sent and dropped when it arrives, so the sender waits and sends again, as over a real network. The rules replace all
those of the network that the run has entered, so one cut is made at a time.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAM = "iptables-restore"
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Administration tools are often missing in the PATH."""
GROUP_PREFIX = "ordersaga-chaos-"
_MOUNTS = Path("/proc/self/mounts")
_NO_RULES = "*mangle\nCOMMIT\n*filter\nCOMMIT\n"
_MARK = 1
_INODE = 9
"""The column of the number of a socket in the kernel's table."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A process, and the ports on which the others reach it."""

    pid: int
    ports: tuple[int, ...] = ()


def missing() -> str | None:
    """Return which program or part of the kernel is missing to cut a connection."""
    if shutil.which(PROGRAM, path=SYSTEM_PATH) is None:
        return f"needs {PROGRAM} (apt-get install iptables)"
    return None if _groups() else "needs a mounted control group version 2"


def _groups() -> Path | None:
    """Return where the control groups of version 2 are mounted."""
    mounts = (line.split() for line in _MOUNTS.read_text().splitlines())
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2" and "rw" in mount[3].split(",")), None)


@dataclass(slots=True)
class Cut:
    """A process that is cut off from others, in both directions, until it is healed."""

    one: Endpoint
    others: Sequence[Endpoint]
    _moved: dict[int, Path] = field(default_factory=dict)
    """The group to which each process returns."""

    def make(self) -> None:
        """Cut it off: connections that exist fall silent, and new ones are not answered.

        Raises LookupError if one of the processes has ended, OSError or SubprocessError if the kernel refuses.
        """
        directions = [(self.one, other) for other in self.others] + [(other, self.one) for other in self.others]
        pairs = [(client, server) for client, server in directions if server.ports]
        try:
            for client in {client.pid for client, _ in pairs}:
                self._move(client)
            # Those of an old connection are listed last: what is opened from here on has the new group.
            _apply([rule for pair in pairs for rule in _rules(*pair)])
        except (FileNotFoundError, ProcessLookupError) as error:
            self.heal()
            raise LookupError(f"a process has ended: {error}") from error

    def heal(self) -> None:
        """Let everything pass again, and leave no group behind, nor one of a run that was killed; may be repeated."""
        _apply([])
        for pid, home in self._moved.items():
            group = _group_of(pid)
            if group.exists():
                for found in group.joinpath("cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):  # it has ended meanwhile
                        home.joinpath("cgroup.procs").write_text(found)
                group.rmdir()
        self._moved.clear()
        _remove_groups_of_the_dead()

    def _move(self, pid: int) -> None:
        group = _group_of(pid)
        home = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
        group.mkdir(exist_ok=True)
        self._moved[pid] = group.parent / home.removeprefix("0::").lstrip("/")
        group.joinpath("cgroup.procs").write_text(str(pid))


def _group_of(pid: int) -> Path:
    root = _groups()
    if root is None:
        raise OSError("no control group of version 2 is mounted")
    return root / f"{GROUP_PREFIX}{pid}"


def _remove_groups_of_the_dead() -> None:
    root = _groups()
    for group in root.glob(f"{GROUP_PREFIX}*") if root else ():
        if not Path("/proc", group.name.removeprefix(GROUP_PREFIX)).exists():
            with contextlib.suppress(OSError):  # another run has done it, or a child of the process lives
                group.rmdir()


def _rules(client: Endpoint, server: Endpoint) -> Iterator[str]:
    """Yield what to mark: new connections of the client to the server, and both directions of those that exist."""
    ports = ",".join(map(str, server.ports))
    yield f"-m cgroup --path {GROUP_PREFIX}{client.pid} -m multiport --dports {ports}"
    for own, peer in _connections(client.pid):
        if peer in server.ports:
            yield f"--sport {own} --dport {peer}"
            yield f"--sport {peer} --dport {own}"


def _connections(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the ports of both ends of each TCP connection that a process has, its own first."""
    process = Path(f"/proc/{pid}")
    sockets = set[str]()
    for descriptor in process.joinpath("fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(descriptor))
    for table in ("tcp", "tcp6"):
        for line in process.joinpath("net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[_INODE]}]" in sockets:
                own, peer = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
                yield own, peer


def _apply(marked: Iterable[str]) -> None:
    lines = [f"-A OUTPUT -p tcp {rule} -j MARK --set-mark {_MARK}\n" for rule in marked]
    rules = f"*mangle\n{''.join(lines)}COMMIT\n*filter\n-A INPUT -m mark --mark {_MARK} -j DROP\nCOMMIT\n"
    program = shutil.which(PROGRAM, path=SYSTEM_PATH) or PROGRAM
    subprocess.run(  # noqa: S603 - found in the directories of the system
        [program], input=rules if lines else _NO_RULES, check=True, capture_output=True, text=True, timeout=60
    )
