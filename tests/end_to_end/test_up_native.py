"""`ordersaga up`, `status` and `down` with real servers and services, and all ways in which a stack may end."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pymongo
import pytest

from operations.stack.api_keys import own_key_file
from operations.stack.layout import CLUSTER_PORTS, SERVER_PORTS, Layout
from operations.stack.ports import FREE_PORTS, PortClaims, PortTakenError
from operations.stack.processes import find_marked
from operations.stack.state import read_state
from operations.stack.status import as_json, check_stack
from shared.services import SERVICES
from shared.urls import hide_credentials
from tests.support import warm_processes
from tests.support.access import bearer
from tests.support.builders import order_body
from tests.support.eventually import eventually
from tests.support.servers import Servers
from tests.support.simulators import package, run_simulator
from tests.support.stack_users import mongodb_url_of

SOME_SERVICES = ("order", "inventory", "payment", "provisioning")
WHY = {"Ordersaga-Reason": "the customer asks for it"}
ROOT = Path(__file__).parents[2]


@dataclass
class CommandLine:
    """The command line for one data directory, without the settings of the user who runs the tests."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def data_directory(self) -> Path:
        return self.home / "stack"

    @property
    def credentials_key(self) -> Path:
        return self.data_directory / "credentials.key"

    @property
    def administrator_url(self) -> str:
        return mongodb_url_of(self.data_directory)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request with the stack's own key."""
        return bearer(own_key_file(Layout(self.data_directory), "commands").read_text().strip())

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERSAGA_")}
        own = {"XDG_STATE_HOME": str(self.home / "state"), "PYTHONPATH": str(ROOT)}
        return {**inherited, **own, "ORDERSAGA_DATA_DIR": str(self.data_directory), **self.settings}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "operations.cli", *words]

    def run(self, *words: str, within: float = 150) -> subprocess.CompletedProcess[str]:
        return warm_processes.run_in_thread(
            "operations.cli", *words, environment=self.environment, directory=self.home, within=within
        )

    def must(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_in_foreground(self, *words: str) -> "subprocess.Popen[str]":
        """Start `up` in a separate process group, as a terminal does."""
        return subprocess.Popen(
            self.command("up", *words),
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def status(self) -> dict[str, Any]:
        """Return the document of `ordersaga status --json` without the start of a process."""
        layout = Layout(self.data_directory)
        with ThreadPoolExecutor(1) as thread:  # this thread runs the event loop of the tests
            state, processes = thread.submit(asyncio.run, check_stack(layout)).result()
        return as_json(layout, state, processes)

    def process(self, name: str) -> dict[str, Any]:
        return next(process for process in self.status()["processes"] if process["name"] == name)

    def left_behind(self) -> list[psutil.Process]:
        """Return every process of this stack, found by its environment or command line even if not recorded."""
        return find_marked(self.data_directory) + _mentioning(self.data_directory)


def _mentioning(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(directory) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def services_only(tmp_path: Path, servers: Servers, database_prefix: str, clean_broker: str) -> Iterator[CommandLine]:
    """Return a command line whose stack uses the servers of this test run."""
    given = {
        "ORDERSAGA_MONGODB_URL": servers.mongodb_url,
        "ORDERSAGA_AMQP_URL": servers.amqp_url,
        "ORDERSAGA_DATABASE_PREFIX": database_prefix,
    }
    own = CommandLine(tmp_path, given)
    yield own
    if own.left_behind():
        own.run("down")


@pytest.fixture(scope="module")
async def stacks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[CommandLine]]:
    """Run a whole stack, and one with its own servers and a single service, started at the same moment."""
    both = [CommandLine(tmp_path_factory.mktemp(f"side{number}")) for number in (1, 2)]
    try:
        await asyncio.gather(
            asyncio.to_thread(both[0].must, "up", "--detach"),
            asyncio.to_thread(both[1].must, "up", "--detach", "--only", "provisioning"),
        )
        yield both
    finally:
        await asyncio.gather(*(asyncio.to_thread(stack.run, "down") for stack in both))


@pytest.fixture
async def whole(stacks: list[CommandLine]) -> CommandLine:
    """Return the stack with all services."""
    return stacks[0]


@pytest.fixture
async def small(stacks: list[CommandLine]) -> CommandLine:
    """Return the stack with provisioning alone."""
    return stacks[1]


async def readiness(stack: CommandLine) -> dict[str, Any]:
    """Return the status once everything is ready; on a loaded machine a single probe may time out."""

    def when_ready() -> dict[str, Any] | None:
        status = stack.status()
        return status if status["ready"] else None

    status = await eventually(when_ready, within=120, message="everything to be ready")
    assert status is not None
    return status


async def test_two_stacks_side_by_side_share_no_port_and_no_process(stacks: list[CommandLine]) -> None:
    one, other = [await readiness(stack) for stack in stacks]
    for status, services in ((one, list(SERVICES)), (other, ["provisioning"])):
        servers = ["mongodb", "rabbitmq", *(["simulator"] if status is one else [])]
        assert [process["name"] for process in status["processes"]] == [*servers, *services]
        assert all(process["ready"] for process in status["processes"])
        assert re.fullmatch(r"mongodb://127\.0\.0\.1:\d+/\?replicaSet=rs0&w=majority", status["mongodbUrl"])
        assert re.fullmatch(r"amqp://deployer:\*\*\*@127\.0\.0\.1:\d+/ordersaga", status["amqpUrl"])
    for key in ("url", "pid"):
        assert not {process[key] for process in one["processes"]} & {process[key] for process in other["processes"]}


async def test_the_exit_status_of_status_is_0_when_everything_is_ready(whole: CommandLine) -> None:
    ready = await readiness(whole)

    def is_printed() -> bool:
        printed = whole.run("status", "--json")
        return printed.returncode == 0 and json.loads(printed.stdout) == ready

    await eventually(is_printed, within=120, message="status to say ready")


async def test_nothing_of_a_stack_listens_beyond_this_machine(whole: CommandLine) -> None:
    listening: list[str] = []
    for process in find_marked(whole.data_directory):
        with contextlib.suppress(psutil.NoSuchProcess):  # RabbitMQ runs short-lived system commands
            found = process.net_connections("tcp")
            listening += [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]
    assert len(listening) >= 9
    assert set(listening) <= {"127.0.0.1", "::1"}


async def test_only_its_owner_can_read_what_a_stack_writes(whole: CommandLine) -> None:
    open_to_others = []
    for path in whole.data_directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # servers replace and delete files
            if not path.is_symlink() and path.stat().st_mode & 0o077:
                open_to_others.append(path)
    assert open_to_others == []


async def test_servers_get_no_setting_of_a_service(whole: CommandLine) -> None:
    for name in ("mongodb", "rabbitmq"):
        environment = psutil.Process(whole.process(name)["pid"]).environ()
        assert [variable for variable in environment if variable.startswith("ORDERSAGA_")] == ["ORDERSAGA_STACK"]


async def test_a_killed_service_is_back_within_seconds(whole: CommandLine) -> None:
    killed = whole.process("inventory")["pid"]
    os.kill(killed, signal.SIGKILL)

    def back() -> bool:
        process = whole.process("inventory")
        return bool(process["ready"] and process["pid"] != killed)

    await eventually(back, within=60, message="inventory to be back")
    assert whole.process("inventory")["restarts"] == 1
    log = (whole.data_directory / "supervisor.log").read_text()
    assert f"inventory (pid {killed}) ended by signal 9" in log


@pytest.mark.parametrize("server", ["mongodb", "rabbitmq"])
async def test_a_killed_server_is_back_and_the_services_recover(whole: CommandLine, server: str) -> None:
    killed = whole.process(server)["pid"]
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: whole.process(server)["pid"] != killed, within=60, message=f"{server} to be started again")
    await readiness(whole)


async def test_doctor_finds_nothing_wrong_with_a_running_stack(whole: CommandLine) -> None:
    await readiness(whole)
    done = whole.run("doctor", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), done.stdout
    checked = {finding["what"]: finding["outcome"] for finding in report["findings"]}
    for what in (
        "MongoDB",
        "replica set",
        "transactions",
        "clock",
        "RabbitMQ node",
        "queues",
        "bindings",
        "server provider",
    ):
        assert checked[what] == "ok"


async def test_a_second_up_is_refused_and_disturbs_nothing(small: CommandLine) -> None:
    before = await readiness(small)
    for words in (["up", "--fresh"], ["up", "--detach"]):
        refused = small.run(*words)
        assert refused.returncode == 1
        assert "already runs" in refused.stderr + refused.stdout
    assert await readiness(small) == before


async def test_the_stack_used_last_is_found_from_anywhere(small: CommandLine) -> None:
    environment = {name: value for name, value in small.environment.items() if name != "ORDERSAGA_DATA_DIR"}
    found = subprocess.run(
        small.command("status", "--json"), env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert json.loads(found.stdout)["dataDirectory"] == str(small.data_directory)


def own_ports(stack: CommandLine) -> dict[str, int]:
    """The ports that no other stack of this machine prefers: a default port is anybody's as soon as it is free."""
    anybodys = {*SERVER_PORTS.values(), *CLUSTER_PORTS.values()}
    ports = read_state(Layout(stack.data_directory)).ports
    return {name: port for name, port in ports.items() if port in FREE_PORTS and port not in anybodys}


async def test_a_killed_supervisor_costs_no_data_and_its_processes_end_with_the_next_up_or_down(
    stacks: list[CommandLine],
) -> None:
    stack = max(stacks, key=lambda each: len(own_ports(each)))
    before, key, ports = stack.status(), stack.credentials_key.read_text(), own_ports(stack)
    insert_one(stack.administrator_url)
    os.kill(before["supervisorPid"], signal.SIGKILL)

    stack.must("up", "--detach", "--only", "provisioning")

    after = stack.status()
    assert ports
    assert ports.items() <= read_state(Layout(stack.data_directory)).ports.items()
    assert not {process["pid"] for process in after["processes"]} & {process["pid"] for process in before["processes"]}
    assert count(stack.administrator_url) == 1
    assert stack.credentials_key.read_text() == key

    os.kill(after["supervisorPid"], signal.SIGKILL)
    stack.must("down")
    assert stack.left_behind() == []
    assert stack.run("status").returncode == 1

    stack.must("up", "--detach", "--fresh", "--only", "")
    assert count(stack.administrator_url) == 0
    assert not stack.credentials_key.exists()


def insert_one(mongodb_url: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        client.kept.things.insert_one({})


def count(mongodb_url: str) -> int:
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        return client.kept.things.count_documents({})


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        # The same program ends by them: `down` sends SIGTERM.
        pytest.param(signal.SIGHUP, marks=pytest.mark.extended),
        pytest.param(signal.SIGTERM, marks=pytest.mark.extended),
    ],
)
async def test_a_stack_in_the_foreground_ends_with_a_signal_and_leaves_nothing(
    services_only: CommandLine, number: signal.Signals
) -> None:
    up = services_only.start_in_foreground("--only", "simulator")
    try:
        await readiness(services_only)
        os.killpg(up.pid, number)
        output, _ = up.communicate(timeout=90)
    finally:
        up.kill()
    assert up.returncode == 0
    assert "everything has ended" in output
    assert services_only.left_behind() == []


@pytest.mark.extended  # tests/unit/test_stack_files.py has each of these decisions
async def test_a_damaged_state_has_a_way_out(services_only: CommandLine) -> None:
    state_file = Layout(services_only.data_directory).state_file
    services_only.must("up", "--detach", "--only", "order")
    supervisor = services_only.status()["supervisorPid"]
    state_file.write_bytes(b"")

    for words, line in (("status", "state.json cannot be read"), ("up", f"already runs in .*pid {supervisor}")):
        failed = services_only.run(words)
        assert failed.returncode == 1
        assert re.search(line, failed.stderr)
        assert "Traceback" not in failed.stderr
    assert "has ended" in services_only.must("down")
    assert services_only.left_behind() == []

    for fresh in (["--fresh"], []):
        state_file.write_bytes(b'{"node": ')
        services_only.must("up", "--detach", "--only", "order", *fresh)
        events = (services_only.data_directory / "supervisor.log").read_text()
        assert "continues without the stored state" in events
        assert state_file.read_bytes().endswith(b"}")
        if fresh:  # the next `up` ends the orphans of this one
            os.kill(services_only.status()["supervisorPid"], signal.SIGKILL)


@pytest.mark.extended  # tests/unit/test_stack_files.py has each of these decisions
async def test_a_copied_data_directory_does_not_start_and_leaves_its_original_alone(services_only: CommandLine) -> None:
    services_only.must("up", "--detach", "--only", "order")
    running = services_only.status()
    copy = services_only.home / "copy"
    shutil.copytree(services_only.data_directory, copy)

    refused = services_only.run("up", "--only", "order", "--data-dir", str(copy))
    assert refused.returncode == 1
    assert f"created in {services_only.data_directory}" in refused.stderr
    assert "up --fresh" in refused.stderr
    assert "nothing runs" in services_only.must("down", "--data-dir", str(copy))
    assert services_only.status() == running

    services_only.must("up", "--detach", "--fresh", "--only", "order", "--data-dir", str(copy))
    assert services_only.status() == running
    services_only.run("down", "--data-dir", str(copy))


async def test_where_nothing_can_run_down_has_nothing_to_do_and_up_says_so_in_one_line(tmp_path: Path) -> None:
    command_line = CommandLine(tmp_path)
    assert "nothing runs" in command_line.must("down")
    assert not command_line.data_directory.exists()

    command_line.data_directory.write_text("a file")
    for words in (["up", "--only", "order"], ["up", "--detach", "--only", "order"]):
        failed = command_line.run(*words)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"the stack in {command_line.data_directory} cannot run: ")
        assert "Traceback" not in failed.stderr


async def test_given_servers_and_a_given_provider_are_used_and_credentials_outlive_a_fresh_stack(
    services_only: CommandLine, servers: Servers
) -> None:
    """A fresh stack over a given database keeps the key to what is in it; an offset gives these ports or none."""
    offset = free_offset()
    async with run_simulator() as simulator:
        await simulator.packages([package("203.0.113")])
        provider = {f"ORDERSAGA_{name.upper()}": value for name, value in simulator.settings.items()}
        services_only.settings.update(provider)
        up = ("up", "--detach", "--only", ",".join(SOME_SERVICES), "--port-offset", str(offset))
        assert "mongodb is external" in await asyncio.to_thread(services_only.must, *up)
        only_services_are_started(services_only, servers, offset)
        await others_are_refused_these_ports(services_only, up, offset)
        before, path = await credentials_of_a_bought_server(services_only)
        provisioning = psutil.Process(services_only.process("provisioning")["pid"])
        assert provisioning.environ()["ORDERSAGA_SMARTVPS_URL"] == simulator.url

        await asyncio.to_thread(services_only.must, "down")
        await asyncio.to_thread(services_only.must, "up", "--detach", "--fresh", "--only", "provisioning")
        url = services_only.process("provisioning")["url"]
        async with httpx.AsyncClient(timeout=20, headers=services_only.headers) as client:
            after = (await client.get(f"{url}{path}", headers=WHY)).raise_for_status().json()
    assert after == before
    assert after["password"]


def free_offset() -> int:
    """An offset of which no port is taken."""
    for _ in range(100):
        with PortClaims() as claims, contextlib.suppress(PortTakenError):
            offset = claims.claim_free() - SERVICES["order"].port
            claims.claim_exactly({name: SERVICES[name].port + offset for name in SOME_SERVICES[1:]})
            return offset
    raise AssertionError("no offset is free")


def only_services_are_started(stack: CommandLine, servers: Servers, offset: int) -> None:
    status = stack.status()
    assert {process["name"]: process["url"] for process in status["processes"]} == {
        name: f"http://127.0.0.1:{SERVICES[name].port + offset}" for name in SOME_SERVICES
    }
    assert (status["mongodbUrl"], status["amqpUrl"]) == (servers.mongodb_url, hide_credentials(servers.amqp_url))


async def others_are_refused_these_ports(stack: CommandLine, up: Sequence[str], offset: int) -> None:
    other = CommandLine(stack.home / "other", stack.settings)
    other.home.mkdir()
    refused = await asyncio.to_thread(other.run, *up)
    assert refused.returncode == 1
    assert f"{3008 + offset} (order)" in refused.stderr


async def credentials_of_a_bought_server(stack: CommandLine) -> tuple[dict[str, Any], str]:
    """Order a server; return its credentials, and the path at which provisioning has them."""
    urls = {process["name"]: process["url"] for process in stack.status()["processes"]}
    async with httpx.AsyncClient(timeout=20, headers=stack.headers) as client:
        product = {"kind": "vps", "package": "203.0.113", "ram": 4096}
        assert (await client.put(f"{urls['inventory']}/products/p1", json=product)).status_code == 201
        placed = await client.post(f"{urls['order']}/orders", json=order_body(payment={"token": "tok_ok"}))
        order_id = placed.raise_for_status().json()["orderId"]

        async def completed() -> bool:
            return bool((await client.get(f"{urls['order']}/orders/{order_id}")).json()["status"] == "COMPLETED")

        await eventually(completed, within=60, message="the server to be bought")
        path = f"/jobs/{order_id}/credentials"
        found: dict[str, Any] = (
            (await client.get(f"{urls['provisioning']}{path}", headers=WHY)).raise_for_status().json()
        )
    return found, path


async def test_a_wrong_setting_fails_the_start_with_the_service_s_own_line(services_only: CommandLine) -> None:
    services_only.settings["ORDERSAGA_SAGA_TIMEOUT_SECONDS"] = "soon"
    failed = services_only.run("up", "--only", "order", "--detach")
    assert failed.returncode == 1
    assert "ORDERSAGA_SAGA_TIMEOUT_SECONDS='soon' is not valid" in failed.stderr
    assert services_only.left_behind() == []
