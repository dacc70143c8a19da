"""The files of a data directory: the stored state, its location, its lock, and the choice of the directory."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from operations.stack.layout import Layout, choose_data_directory, remember_as_last_used
from operations.stack.processes import MARK, Identity, find, find_marked, identify
from operations.stack.relocation import MovedError, check_location
from operations.stack.run import StackOptions, run_stack
from operations.stack.start import StackStartError
from operations.stack.state import (
    ProcessState,
    State,
    UnreadableStateError,
    acquire_lock,
    find_lock_holder,
    read_state,
    read_state_if_readable,
    write_state,
)


def test_the_named_directory_comes_before_the_environment_s(tmp_path: Path) -> None:
    environment = {"ORDERSAGA_DATA_DIR": "/from/environment"}
    assert choose_data_directory(tmp_path, environment) == tmp_path
    assert choose_data_directory(None, environment) == Path("/from/environment")


def test_the_default_directory_is_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_data_directory(None, {"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / ".ordersaga"


def test_only_commands_that_look_for_a_stack_take_the_one_used_last(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    remember_as_last_used(Path("/used/last"), environment)
    assert choose_data_directory(None, environment, last_used=True) == Path("/used/last")
    assert choose_data_directory(None, environment) == Path.cwd() / ".ordersaga"


def test_a_stack_that_never_ran_has_an_empty_state(tmp_path: Path) -> None:
    assert read_state(Layout(tmp_path / "nothing")) == State()


def test_the_state_is_read_as_it_was_written_and_only_its_owner_may(tmp_path: Path) -> None:
    process = ProcessState("order", "http://127.0.0.1:3008", Identity(7, 1.5), ready=True, detail="ready", restarts=2)
    state = State("node", {"order": 3008}, "ready", None, Identity(1, 2.5), "mongodb://", "amqp://", "t1", (process,))
    layout = Layout(tmp_path)
    write_state(layout, state)
    assert read_state(layout) == state
    assert layout.state_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_file_is_replaced_as_a_whole_and_only_once_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    write_state(layout, State(node="first"))

    def fail(*_: object) -> None:
        assert read_state(layout).node == "first"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_state(layout, State(node="second"))
    assert read_state(layout).node == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


UNREADABLE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"processes": 3}',
    b'{"supervisor": {"pid": "x"}}',
    b'{"supervisor": {"pid": -1, "started": 0}}',
    b'{"ports": {"order": 70000}}',
    b"\0" * 4096,
]


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_state_that_cannot_be_read_is_reported_in_one_line_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    layout = Layout(tmp_path)
    layout.state_file.write_bytes(content)
    with pytest.raises(UnreadableStateError) as raised:
        read_state(layout)
    line = str(raised.value)
    assert "\n" not in line
    for part in (str(layout.state_file), "ordersaga down", "ordersaga up --fresh"):
        assert part in line
    assert read_state_if_readable(layout) == State()


def test_a_state_file_that_cannot_be_opened_is_reported_like_a_damaged_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.state_file.mkdir()
    with pytest.raises(UnreadableStateError, match="Is a directory"):
        read_state(layout)


def test_a_state_of_another_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.state_file.write_text('{"node": "n1", "of a later version": {"x": 1}}')
    assert read_state(layout) == State(node="n1")


def test_a_directory_that_was_moved_or_copied_is_refused_with_instructions(tmp_path: Path) -> None:
    made, copy = Layout(tmp_path / "made"), Layout(tmp_path / "copy")
    made.root.mkdir()
    check_location(made)
    check_location(made)
    shutil.copytree(made.root, copy.root)
    with pytest.raises(MovedError, match="up --fresh") as raised:
        check_location(copy)
    assert str(made.root) in str(raised.value)
    shutil.rmtree(made.root)
    copy.root.rename(made.root)
    check_location(made)


def test_a_directory_may_be_named_by_another_path_that_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    check_location(Layout(tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    check_location(Layout(tmp_path / "link"))
    assert choose_data_directory(tmp_path / "link") == tmp_path / "real"


def test_a_damaged_record_of_the_location_prevents_a_start(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.location_file.write_bytes(b"\xff")
    with pytest.raises(MovedError, match="moved or copied"):
        check_location(layout)


def test_the_processes_that_a_copied_state_names_are_not_those_of_the_copy(tmp_path: Path) -> None:
    made, copy = Layout(tmp_path / "made"), Layout(tmp_path / "copy")
    made.root.mkdir()
    check_location(made)
    write_state(made, State(node="n1", supervisor=identify(os.getpid())))
    shutil.copytree(made.root, copy.root)
    assert read_state(made).running
    assert read_state(copy) == State()


def test_the_supervisor_is_found_by_its_lock_and_not_by_the_state(tmp_path: Path) -> None:
    made, copy = Layout(tmp_path / "made"), Layout(tmp_path / "copy")
    assert find_lock_holder(made) is None
    with acquire_lock(made):
        made.state_file.write_bytes(b"")
        holder = find_lock_holder(made)
        assert holder is not None
        assert holder.pid == os.getpid()
        shutil.copytree(made.root, copy.root)
        assert find_lock_holder(copy) is None
    assert find_lock_holder(made) is None


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"\0", b"relative/path", b"/with\0nul"])
def test_a_damaged_record_of_the_directory_used_last_is_ignored(tmp_path: Path, note: bytes) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    remember_as_last_used(tmp_path, environment)
    (tmp_path / "ordersaga" / "last-data-directory").write_bytes(note)
    chosen = choose_data_directory(None, environment, last_used=True)
    assert chosen == Path.cwd() / ".ordersaga"


def test_the_record_of_the_directory_used_last_can_have_any_path(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    strange = Path(os.fsdecode(b"/used/\xff last"))
    remember_as_last_used(strange, environment)
    assert choose_data_directory(None, environment, last_used=True) == strange


def test_a_stack_runs_as_long_as_its_supervisor() -> None:
    own = identify(os.getpid())
    assert own is not None
    assert State(supervisor=own).running
    assert not State(supervisor=Identity(own.pid, own.started - 60)).running
    assert not State().running


def test_a_process_that_has_ended_is_not_found_even_before_it_is_waited_for() -> None:
    process = subprocess.Popen(["sleep", "600"])
    identity = identify(process.pid)
    assert identity is not None
    assert find(identity) is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # now it is a zombie
    assert find(identity) is None
    process.wait()
    assert find(identity) is None
    assert identify(process.pid) is None


class EventsListener:
    """Keeps the events of a stack, and ignores its states."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_change(self, state: State) -> None:
        """Ignore a new state."""

    def on_event(self, text: str) -> None:
        """Keep an event."""
        self.events.append(text)


def first_state(options: StackOptions, monkeypatch: pytest.MonkeyPatch) -> tuple[State, list[str]]:
    """Run a stack up to its first state, which a full disk does not take; return it, and the events until then."""
    states, listener = [], EventsListener()

    def record(_: Layout, state: State) -> None:
        states.append(state)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "umask", lambda _: 0)
    monkeypatch.setattr("operations.stack.run.write_state", record)
    servers = {"ORDERSAGA_MONGODB_URL": "mongodb://there/", "ORDERSAGA_AMQP_URL": "amqp://there/"}
    with pytest.raises(StackStartError, match="No space left"):
        run_stack(options, listener, servers)
    (state,) = states
    return state, listener.events


def test_the_first_state_of_a_stack_says_that_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, events = first_state(StackOptions(tmp_path, ()), monkeypatch)
    assert (state.phase, events) == ("starting", [])


@pytest.mark.parametrize("fresh", [False, True])
def test_a_start_goes_on_without_a_damaged_state_and_ends_the_processes_that_it_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    Layout(tmp_path).state_file.write_bytes(b'{"node": ')
    with subprocess.Popen(["sleep", "600"], env={MARK: str(tmp_path)}) as orphan:
        state, events = first_state(StackOptions(tmp_path, (), fresh=fresh), monkeypatch)
        was_ended = find_marked(tmp_path) == []
        orphan.kill()
    assert was_ended
    assert state.phase == "starting"
    assert "continues without the stored state" in events[0]
    assert events[1:] == ["ended 1 processes that a killed supervisor left behind"]
