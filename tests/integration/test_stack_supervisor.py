"""The supervisor over stand-in programs: starts, restarts and ends."""

import asyncio
import contextlib
import errno
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from operations.stack.layout import Layout
from operations.stack.orphans import end_orphans
from operations.stack.ports import PortClaims
from operations.stack.processes import end_all, find, find_marked, identify
from operations.stack.program import Command, ServerMissingError
from operations.stack.services import probe_readiness
from operations.stack.start import StackStartError
from operations.stack.state import AlreadyRunsError, ProcessState, State, acquire_lock, read_state, write_state
from operations.stack.supervisor import Supervisor
from tests.support.eventually import eventually

T = TypeVar("T")

# Answers every request with 200, or with the status in ANSWER; notes its end in the file ENDS.
HTTP_PROGRAM = """
import http.server, os, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ.get("ANSWER", "200")))
        self.end_headers()
        self.wfile.write(b'{"rabbitmq": "down"}')

def end(*_):
    with open(os.environ["ENDS"], "a") as ends:
        ends.write(os.environ["NAME"] + " ")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
print("started", flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

# The same with almost no imports: it starts as fast as Python itself, for measurements.
QUICK_PROGRAM = """
import os, socket

with socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) as listener:
    while True:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
"""

LONG_ENOUGH = 60
"""Seconds that programs may take to start, to answer or to end on a loaded machine."""


@dataclass
class StandIn:
    """A program that answers HTTP requests, unless it gets another source."""

    name: str
    port: int
    directory: Path
    source: str = HTTP_PROGRAM
    settings: dict[str, str] = field(default_factory=dict)
    grace_seconds: float = LONG_ENOUGH

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> Command:
        own = {"NAME": self.name, "PORT": str(self.port), "ENDS": str(self.directory / "ends")}
        return Command((sys.executable, "-c", self.source), {**os.environ, **own, **self.settings})

    async def probe(self) -> str | None:
        return await asyncio.to_thread(probe_readiness, self.url)


class Answering(StandIn):
    """A program whose probe waits until it answers, so the start time of Python does not matter."""

    async def probe(self) -> str | None:
        async def ask() -> str | None:
            answer = await super(Answering, self).probe() or "ready"
            return answer if answer == "ready" or "nothing answers" not in answer else None

        answer = await eventually(ask, LONG_ENOUGH, f"{self.name} to answer")
        return None if answer == "ready" else answer


class Run:
    """A supervisor that runs in a task of this process."""

    def __init__(
        self,
        layout: Layout,
        *stages: list[StandIn],
        ready_within_seconds: float = LONG_ENOUGH,
        disk: "FullDisk | None" = None,
        state: State = State(),  # noqa: B008 - never changed
    ) -> None:
        self.layout = layout
        self.events: list[str] = []
        self.supervisor = Supervisor(
            layout,
            stages,
            state,
            on_event=disk.before(self.events.append) if disk else self.events.append,
            ready_within_seconds=ready_within_seconds,
        )
        self.task = asyncio.create_task(self.supervisor.run())

    async def ready(self) -> None:
        await eventually(lambda: self.task.done() or self.supervisor.state.phase == "ready", 2 * LONG_ENOUGH)
        assert self.supervisor.state.phase == "ready"

    def process(self, name: str) -> ProcessState:
        return next(process for process in read_state(self.layout).processes if process.name == name)

    def pid(self, name: str) -> int:
        identity = self.process(name).identity
        assert identity is not None
        return identity.pid

    async def end_by_itself(self) -> None:
        with pytest.raises(StackStartError):
            await self.task

    async def end(self) -> None:
        self.supervisor.request_stop()
        with contextlib.suppress(StackStartError):
            await self.task


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Return a data directory; processes that a failed test leaves running are ended."""
    root = tmp_path / "stack"
    root.mkdir()
    yield Layout(root)
    end_all(find_marked(root), grace_seconds=0)


@pytest.fixture
async def ports() -> AsyncIterator[PortClaims]:
    with PortClaims() as claims:
        yield claims


@pytest.fixture
def one(ports: PortClaims, tmp_path: Path) -> StandIn:
    return StandIn("one", ports.claim_free(), tmp_path)


@pytest.fixture
def two(ports: PortClaims, tmp_path: Path) -> StandIn:
    return StandIn("two", ports.claim_free(), tmp_path)


async def test_it_starts_stages_in_order_and_ends_them_in_reverse(
    layout: Layout, one: StandIn, two: StandIn, tmp_path: Path
) -> None:
    run = Run(layout, [one], [two])
    await run.ready()
    assert [process.ready for process in read_state(layout).processes] == [True, True]
    assert os.getsid(run.pid("one")) == run.pid("one")  # out of reach of the terminal's ctrl-C

    await run.end()

    assert (tmp_path / "ends").read_text().split() == ["two", "one"]
    assert read_state(layout).phase == "stopped"
    assert find_marked(layout.root) == []


async def test_a_stage_waits_until_the_one_before_it_is_ready(layout: Layout, one: StandIn, two: StandIn) -> None:
    one.settings["ANSWER"] = "503"
    run = Run(layout, [one], [two])
    await eventually(lambda: '"rabbitmq": "down"' in run.process("one").detail, LONG_ENOUGH, "/readyz to be shown")
    assert run.process("two").identity is None
    await run.end()


async def test_servers_count_as_a_cluster_from_the_moment_when_a_service_may_use_them(
    layout: Layout, one: StandIn, two: StandIn
) -> None:
    """`up` deletes the data of a cluster whose first start got no further."""
    source, one.source = one.source, "import sys; sys.exit(7)"
    failed = Run(layout, [one], [two], state=State(is_new_cluster=True))
    await failed.end_by_itself()
    assert read_state(layout).is_new_cluster

    one.source, two.source = source, "import sys; sys.exit(7)"
    failed = Run(layout, [one], [two], state=State(is_new_cluster=True))
    await failed.end_by_itself()
    assert not read_state(layout).is_new_cluster


async def test_a_killed_program_is_restarted_within_a_second_and_its_death_is_reported(
    layout: Layout, one: StandIn
) -> None:
    one.source = QUICK_PROGRAM
    fastest, tries = math.inf, 0
    while fastest > 1.5 and tries < 10:  # a pause of the machine is not the supervisor's fault
        fastest, tries = min(fastest, await _seconds_until_it_is_back(layout, one)), tries + 1
    assert fastest < 1.5


async def _seconds_until_it_is_back(layout: Layout, one: StandIn) -> float:
    run = Run(layout, [one])
    await run.ready()
    killed = run.pid("one")

    died = time.monotonic()
    os.kill(killed, signal.SIGKILL)

    await eventually(lambda: run.process("one").ready and run.pid("one") != killed, LONG_ENOUGH)
    took = time.monotonic() - died
    assert run.process("one").restarts == 1
    assert run.events[0] == f"one (pid {killed}) ended by signal 9: restart in 0.2 s"
    assert run.events[1] == f"one is running again (pid {run.pid('one')})"
    await run.end()
    return took


async def test_a_program_that_keeps_dying_is_restarted_ever_more_slowly(
    layout: Layout, one: StandIn, tmp_path: Path
) -> None:
    # Runs until it is killed after its first start; ends immediately after every later start.
    mark = str(tmp_path / "mark")
    once = f"import os, sys\nif os.path.exists({mark!r}): sys.exit(7)\nopen({mark!r}, 'w').close()"
    one.source = once + HTTP_PROGRAM
    run = Run(layout, [one])
    await run.ready()

    os.kill(run.pid("one"), signal.SIGKILL)

    await eventually(lambda: sum("restart in" in event for event in run.events) >= 4, LONG_ENOUGH)
    delays = [event.rpartition("restart in ")[2] for event in run.events if "restart in" in event]
    assert delays[:4] == ["0.2 s", "0.4 s", "0.8 s", "1.6 s"]
    assert any("ended during its start with exit status 7" in event for event in run.events)
    await run.end()


class FullDisk:
    """Simulates a disk that refuses writes while it is `full`."""

    def __init__(self) -> None:
        self.full = False

    def before(self, write: Callable[..., T]) -> Callable[..., T]:
        def checked(*arguments: object) -> T:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*arguments)

        return checked


async def test_a_full_disk_does_not_end_the_supervision(
    layout: Layout, one: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk()
    monkeypatch.setattr("operations.stack.state_writer.write_state", disk.before(write_state))
    monkeypatch.setattr(one, "prepare", disk.before(one.prepare))
    run = Run(layout, [one], disk=disk)
    await run.ready()
    killed = run.pid("one")

    disk.full = True
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: not psutil.pid_exists(killed), LONG_ENOUGH)
    # Meanwhile the program cannot be started, and no event can be written.
    before = run.supervisor.state
    await eventually(lambda: run.supervisor.state is not before, LONG_ENOUGH)
    assert run.events == []
    assert run.pid("one") == killed  # the state on the disk has not changed
    disk.full = False

    await eventually(lambda: run.process("one").ready and run.pid("one") != killed, LONG_ENOUGH)
    await eventually(lambda: any("is running again" in event for event in run.events), LONG_ENOUGH)
    state_file = str(layout.state_file)
    reported = [event.partition(" (at ")[0] for event in run.events]
    assert f"{state_file} cannot be written (No space left on device): retried every second" in reported
    assert reported.count(f"{state_file} can be written again") == 1
    assert reported[0].startswith(f"one (pid {killed}) ended by signal 9")
    await run.end()
    assert read_state(layout).phase == "stopped"


async def test_a_disk_that_stays_full_does_not_hinder_the_end(
    layout: Layout, one: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk()
    monkeypatch.setattr("operations.stack.state_writer.write_state", disk.before(write_state))
    run = Run(layout, [one], disk=disk)
    await run.ready()
    disk.full = True
    await run.end()
    assert find_marked(layout.root) == []


async def test_a_failed_restart_is_reported_and_tried_again(
    layout: Layout, one: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(layout, [one])
    await run.ready()
    prepare, wrong = one.prepare, [RuntimeError("out of order"), ServerMissingError("mongod --version does not run")]

    def prepare_at_the_third_try() -> Command:
        if wrong:
            raise wrong.pop()
        return prepare()

    monkeypatch.setattr(one, "prepare", prepare_at_the_third_try)
    killed = run.pid("one")
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: run.process("one").ready and run.pid("one") != killed, LONG_ENOUGH)
    assert "one cannot be started: mongod --version does not run" in run.events
    assert "one could not be restarted: out of order" in run.events
    await run.end()


async def test_a_program_that_ends_at_its_start_fails_the_start_with_its_line(
    layout: Layout, one: StandIn, two: StandIn
) -> None:
    two.source = "import sys; sys.exit(\"ORDERSAGA_HTTP_PORT='x' is not valid: an integer\")"
    run = Run(layout, [one], [two])

    with pytest.raises(
        StackStartError, match=r"two ended during its start with exit status 1\nORDERSAGA_HTTP_PORT='x'"
    ):
        await run.task

    state = read_state(layout)
    assert (state.phase, "is not valid" in (state.error or "")) == ("failed", True)
    assert find_marked(layout.root) == []


async def test_a_program_that_is_not_ready_in_time_fails_the_start_with_the_reason(
    layout: Layout, ports: PortClaims, tmp_path: Path
) -> None:
    one = Answering("one", ports.claim_free(), tmp_path, settings={"ANSWER": "503"})
    run = Run(layout, [one], ready_within_seconds=1)

    with pytest.raises(StackStartError) as failure:
        await run.task

    first, *log = str(failure.value).splitlines()
    assert first == 'one is not ready after 1 s: /readyz answers 503: {"rabbitmq": "down"}'
    assert any("GET /readyz" in line for line in log)
    assert find_marked(layout.root) == []


async def test_a_stop_during_the_start_ends_everything(layout: Layout, one: StandIn, two: StandIn) -> None:
    two.settings["ANSWER"] = "503"
    run = Run(layout, [one], [two])
    await eventually(lambda: run.process("two").identity is not None, LONG_ENOUGH)

    await run.end()

    assert read_state(layout).phase == "stopped"
    assert find_marked(layout.root) == []


async def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(layout: Layout, one: StandIn) -> None:
    one.source = HTTP_PROGRAM.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
    one.grace_seconds = 0.3
    run = Run(layout, [one])
    await run.ready()
    await run.end()
    assert find_marked(layout.root) == []


async def test_a_second_request_to_stop_does_not_wait_for_the_grace(layout: Layout, one: StandIn) -> None:
    one.source = HTTP_PROGRAM.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
    one.grace_seconds = 600
    run = Run(layout, [one])
    await run.ready()
    run.supervisor.request_stop()
    await eventually(lambda: read_state(layout).phase == "stopping", LONG_ENOUGH)
    async with asyncio.timeout(LONG_ENOUGH):
        await run.end()
    assert find_marked(layout.root) == []


async def test_children_of_a_program_in_another_session_are_ended_too(layout: Layout, one: StandIn) -> None:
    daemon = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    one.source = daemon + HTTP_PROGRAM
    run = Run(layout, [one])
    await run.ready()
    assert len(find_marked(layout.root)) == 2
    await run.end()
    assert find_marked(layout.root) == []


async def test_orphans_are_ended_and_a_process_with_a_recycled_pid_is_not(layout: Layout) -> None:
    left, stranger = [await asyncio.create_subprocess_exec("sleep", "600") for _ in range(2)]
    recorded, recycled = identify(left.pid), identify(stranger.pid)
    assert recorded is not None
    assert recycled is not None
    try:
        state = State(
            processes=(
                ProcessState("order", identity=recorded),
                ProcessState("mongodb", identity=replace(recycled, started=recycled.started - 3600)),
            )
        )
        assert end_orphans(layout, state) == 1
        # Only the first to wait gets the status; asyncio reports 255 if psutil was first.
        assert await left.wait() in (-signal.SIGTERM, 255)
        assert find(recycled) is not None
    finally:
        for process in (left, stranger):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_processes_end_by_themselves_when_their_supervisor_is_killed(layout: Layout, one: StandIn) -> None:
    code = (
        "import asyncio, sys, os\n"
        "from pathlib import Path\n"
        "from operations.stack.processes import spawn\n"
        "from operations.stack.program import Command\n"
        "async def main():\n"
        "    command = Command(('sleep', '600'), dict(os.environ))\n"
        "    await spawn(command, Path(sys.argv[1]) / 'log', Path(sys.argv[1]))\n"
        "    print('spawned', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(layout.root), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert supervisor.stdout is not None
    assert await supervisor.stdout.readline() == b"spawned\n"
    assert len(find_marked(layout.root)) == 1
    supervisor.kill()
    await supervisor.wait()
    await eventually(lambda: find_marked(layout.root) == [], LONG_ENOUGH, "the child to end")


def test_a_data_directory_has_one_supervisor(layout: Layout) -> None:
    with acquire_lock(layout), pytest.raises(AlreadyRunsError, match="already runs in"), acquire_lock(layout):
        pass
    with acquire_lock(layout):
        pass
