"""Python programs as processes that need not import the libraries first, which is most of what a start costs.

Tests start services hundreds of times, and each start spends a second on imports. So one process imports the
libraries, none of this project's services or commands, and forks for each program, which then runs as `python -m`
runs it: with its own pid, environment and end, by exit status or signal. That a service starts without
such help is shown wherever `ordersaga up` runs.
"""

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = (
    "cryptography.fernet",
    "aiohttp",
    "httpx",
    "jinja2",
    "psutil",
    "pydantic.v1",  # FastAPI imports it with the first route
    "rich.console",
    "rich.live",
    "rich.markdown",
    "rich.table",
    "typer",
    # With FastAPI, uvicorn, aio_pika, PyMongo, Pydantic and structlog; a service imports all of `shared` anyway.
    "shared.service",
)
_LENGTH_BYTES = 4


class WarmProcess:
    """A running program; what asyncio's own Process has, as far as tests need it."""

    def __init__(self, pid: int, status: asyncio.StreamReader, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._ending = asyncio.create_task(self._end(status))

    async def _end(self, status: asyncio.StreamReader) -> int:
        # Nothing comes when the process that forks is gone; then this one has been killed as well.
        self.returncode = int(await status.readline() or -signal.SIGKILL)
        return self.returncode

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError when it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


async def start(module: str, *words: str, environment: Mapping[str, str]) -> WarmProcess:
    """Run `python -m module words`, with both outputs in `stdout` and nothing to read."""
    stdout, output = await _pipe()
    try:
        with open(os.devnull, "rb") as nothing:
            pid, status = await _fork(module, words, environment, (nothing.fileno(), output, output))
    finally:
        os.close(output)
    return WarmProcess(pid, status, stdout)


async def run(
    module: str, *words: str, environment: Mapping[str, str], answer: str = "", together: bool = False
) -> tuple[int, str, str]:
    """Run `python -m module words` to its end; its exit status, what it printed and its errors, or both `together`."""
    (stdout, output), (stderr, errors) = await _pipe(), await _pipe()
    source, sink = os.pipe()
    os.write(sink, answer.encode())  # a few words, for which a pipe has room
    os.close(sink)
    try:
        pid, status = await _fork(module, words, environment, (source, output, output if together else errors))
    finally:
        for descriptor in (source, output, errors):
            os.close(descriptor)
    process = WarmProcess(pid, status, stdout)
    printed, said = await asyncio.gather(stdout.read(), stderr.read())
    return await process.wait(), printed.decode(), said.decode()


def run_in_thread(
    module: str, *words: str, environment: Mapping[str, str], within: float, directory: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """The same for a thread without an event loop, as `subprocess.run` does; processes that it leaves may run on.

    Raises subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with open(os.devnull, "rb") as nothing:
            standard = (nothing.fileno(), output.fileno(), errors.fileno())
            pid, status = _forked_for_thread(module, words, environment, standard, directory)
        with status:
            status.settimeout(within)
            try:
                ended = int(status.recv(_LENGTH_BYTES * 4) or -signal.SIGKILL)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([module, *words], within) from None
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([module, *words], ended, output.read(), errors.read())


def _forked_for_thread(
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    standard: tuple[int, int, int],
    directory: Path | None,
) -> tuple[int, socket.socket]:
    """Have a program started; return its pid and what its exit status comes from."""
    # Packets, so that the two lines are read one by one.
    status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _Forker.ours().ask(module, words, environment, (*standard, theirs.fileno()), directory)
    return int(status.recv(_LENGTH_BYTES * 4)), status


async def _pipe() -> tuple[asyncio.StreamReader, int]:
    """A pipe: what is written into the descriptor is read here, until every copy of it is closed."""
    source, sink = os.pipe()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(source, "rb", 0))
    return reader, sink


async def _fork(
    module: str, words: tuple[str, ...], environment: Mapping[str, str], standard: tuple[int, int, int]
) -> tuple[int, asyncio.StreamReader]:
    """Have a program started with these descriptors; return its pid and a reader of its exit status."""
    status, exit_pipe = await _pipe()
    try:
        _Forker.ours().ask(module, words, environment, (*standard, exit_pipe))
    finally:
        os.close(exit_pipe)
    return int(await status.readline()), status


class _Forker:
    """The process that forks, from this side: started with the first program, ended with this process."""

    _ours: "_Forker | None" = None
    _lock = threading.Lock()
    """Held by the thread that starts it, or that asks it."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm_processes", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._close)

    def _close(self) -> None:
        self.control.close()
        self._process.wait()

    @classmethod
    def ours(cls) -> "_Forker":
        with cls._lock:
            if cls._ours is None:
                cls._ours = cls()
            return cls._ours

    def ask(
        self,
        module: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        descriptors: tuple[int, int, int, int],
        directory: Path | None = None,
    ) -> None:
        """Ask for a program with these descriptors: the standard ones, and one for its pid and its exit status."""
        place = None if directory is None else str(directory)
        values = {"module": module, "words": words, "environment": dict(environment), "directory": place}
        request = json.dumps(values).encode()
        with self._lock:
            socket.send_fds(self.control, [len(request).to_bytes(_LENGTH_BYTES)], descriptors)
            self.control.sendall(request)


# --- In the process that forks. ---


@dataclass
class _Server:
    """Forks for each request and reports each program's pid and exit status; kills all when the client is gone."""

    control: socket.socket
    exit_pipes: dict[int, int] = field(default_factory=dict)
    """For each pid, the pipe that takes its exit status."""

    def serve(self) -> dict[str, Any] | None:
        """Return None at the end, and in a forked process the request for it."""
        wake, wakened = socket.socketpair()
        with selectors.DefaultSelector() as selector, wake, wakened:
            wake.setblocking(False)
            wakened.setblocking(False)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the test runner handles ctrl-C
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(wakened.fileno(), warn_on_full_buffer=False)
            for source in (self.control, wake):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if wake in ready:
                    wake.recv(4096)
                    self._report_exits()
                if self.control in ready:
                    connected, request = self._take()
                    if not connected or request:
                        break
        signal.set_wakeup_fd(-1)
        return request

    def _take(self) -> tuple[bool, dict[str, Any] | None]:
        """Take one request: whether there was one, and in the forked process what it asks for."""
        head, descriptors, _, _ = socket.recv_fds(self.control, _LENGTH_BYTES, 4)
        if not head:
            self._kill_all()
            return False, None
        length, body = int.from_bytes(head), b""
        while len(body) < length:
            body += self.control.recv(length - len(body))
        *standard, exit_pipe = descriptors
        if (pid := os.fork()) == 0:
            self._become_program(standard, exit_pipe)
            request: dict[str, Any] = json.loads(body)
            return True, request
        for descriptor in standard:
            os.close(descriptor)
        self.exit_pipes[pid] = exit_pipe
        os.write(exit_pipe, b"%d\n" % pid)
        return True, None

    def _become_program(self, standard: list[int], exit_pipe: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        for descriptor in (*standard, exit_pipe, *self.exit_pipes.values()):
            os.close(descriptor)
        self.control.close()

    def _report_exits(self) -> None:
        for pid, exit_pipe in list(self.exit_pipes.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(BrokenPipeError):  # its reader is gone
                    os.write(exit_pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
                os.close(exit_pipe)
                del self.exit_pipes[pid]

    def _kill_all(self) -> None:
        for pid in self.exit_pipes:
            os.kill(pid, signal.SIGKILL)


def _main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is imported stays shared with the forked processes, which need not scan it
    request = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if request is None:
        return
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["directory"] is not None:
        os.chdir(request["directory"])
    sys.argv = [request["module"], *request["words"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
