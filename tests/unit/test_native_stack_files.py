"""What a stack remembers and which directory is meant."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from operations.native.layout import Layout, choose_data_directory, remember_as_last_used
from operations.native.processes import Identity, find, identify
from operations.native.state import ProcessState, State, read_state, write_state


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


def test_a_state_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    write_state(layout, State(node="first"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_state(layout, State(node="second"))
    assert read_state(layout).node == "first"


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
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert find(identity) is None
    process.wait()
    assert find(identity) is None
    assert identify(process.pid) is None
