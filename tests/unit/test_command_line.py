"""The frame of the command line, and how commands locate a stack."""

import errno
import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from typer.main import get_command
from typer.testing import CliRunner

from operations import cli
from operations.doctor.machine import check_disk
from operations.errors import UnreachableError
from operations.settings import locate_stack
from operations.stack.database_users import load_users
from operations.stack.layout import Layout, remember_as_last_used
from operations.stack.processes import identify
from operations.stack.state import ProcessState, State, read_state, write_state
from simulation import world
from tests.support.commands import run_command


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.build_application(words), list(words))
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    status, text = run("--help")
    assert status == 0
    for name, entry in cli.COMMANDS.items():
        assert name in text
        assert entry.summary.split()[0] in text


def test_the_version_is_the_one_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert run("--version") == (0, f"ordersaga {project['version']}\n")


def commands_of(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return the commands below a command, with their paths; groups are none themselves."""
    nested = getattr(command, "commands", None)
    if nested is None:
        return [(path, command)]
    return [found for name, one in nested.items() for found in commands_of(one, (*path, name))]


def every_command() -> list[tuple[tuple[str, ...], Any]]:
    applications = {name: get_command(cli.build_application([name])) for name in cli.COMMANDS}
    return [found for name, one in applications.items() for found in commands_of(one) if found[0][0] == name]


@pytest.mark.parametrize(("path", "command"), every_command())
def test_the_help_shows_the_default_of_every_option_that_takes_a_value(path: tuple[str, ...], command: Any) -> None:
    shown = "".join(run(*path, "--help")[1].split())
    for parameter in command.params:
        if not parameter.required and not getattr(parameter, "is_flag", False):
            default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
            assert default not in (None, ""), (path, parameter.name)
    with_value = [one for one in command.params if not one.required and not getattr(one, "is_flag", False)]
    assert shown.count("[default:") == len(with_value) + sum(bool(one.secondary_opts) for one in command.params)
    assert "…" not in shown


WITHOUT_A_STACK = {
    ("demo",): "starts one of its own, in a directory that it prints",
    ("chaos",): "starts one of its own, in a directory that it prints",
    ("simulate",): "runs in its own process, without any server",
    ("topology", "users"): "prints what another program imports",
    ("up",): "names the data directory in its first line",
    ("down",): "names the data directory in its last line",
    ("status",): "names the data directory in its last line",
}
ARGUMENTS: dict[tuple[str, ...], list[str]] = {
    ("keys", "create"): ["--role", "viewer", "--owner", "shop"],
    ("keys", "revoke"): ["12345678"],
    ("keys", "rotate"): ["12345678"],
    ("order", "timeline"): ["o1"],
    ("order", "trace"): ["o1"],
    ("order", "release"): ["o1", "--yes", "--why", "x"],
    ("accounts", "show"): ["bank:b1"],
    ("accounts", "statement"): ["bank:b1"],
    ("accounts", "repair"): ["--all"],
    ("accounts", "assign"): ["--owner", "shop", "--all"],
    ("cleanup",): ["--older-than", "30d"],
    ("archive",): ["--older-than", "30d", "--to", "archive"],
    ("backup",): ["backup"],
    ("restore",): ["."],
    ("erase",): ["--user", "u1", "--yes", "--why", "x"],
    ("notifications", "add"): ["r1", "--channel", "slack", "--why", "x"],
    ("notifications", "enable"): ["r1", "--why", "x"],
    ("notifications", "disable"): ["r1", "--why", "x"],
    ("notifications", "remove"): ["r1", "--why", "x"],
    ("notifications", "test"): ["r1"],
    ("orders", "show"): ["o1"],
    **{("orders", action): ["--all", "--yes", "--why", "x"] for action in ("cancel", "retry", "refund", "nudge")},
    ("orders", "resume"): ["b1"],
    ("orders", "stop"): ["b1", "--why", "x"],
    ("search",): ["lamp"],
    ("stock", "show"): ["p1"],
    ("stock", "restock"): ["p1", "5", "--yes", "--why", "x"],
    ("stock", "off-sale"): ["p1", "--yes", "--why", "x"],
    ("stock", "on-sale"): ["p1", "--why", "x"],
    ("pause",): ["payment", "--yes", "--reason", "x"],
    ("resume",): ["payment", "--reason", "x"],
    ("dead-letters", "show"): ["abc"],
    ("dead-letters", "preview"): ["--all"],
    ("dead-letters", "edit"): ["abc"],
    ("dead-letters", "replay"): ["--all", "--yes"],
    ("dead-letters", "outcome"): ["abc"],
    ("dead-letters", "discard"): ["--all", "--yes", "--why", "x"],
    ("dead-letters", "restore"): ["--all", "--yes", "--why", "x"],
    ("dead-letters", "export"): ["--all"],
    ("events", "export"): ["--out", "events.jsonl"],
    ("database", "prepare"): ["--secrets", "secrets"],
}


@pytest.mark.parametrize("path", [path for path, _ in every_command() if path not in WITHOUT_A_STACK])
def test_every_command_that_acts_names_what_it_acts_on_first(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NamedError(Exception):
        """The command has named its target, and may not go on."""

    def name(kind: str, where: object) -> None:
        raise NamedError(f"{kind}: {where}")

    for module in list(sys.modules.values()):
        if module.__name__.startswith("operations.commands") and hasattr(module, "name_target"):
            monkeypatch.setattr(module, "name_target", name)
    monkeypatch.chdir(tmp_path)
    here = {"ORDERSAGA_MONGODB_URL": "mongodb://127.0.0.1:1/", "ORDERSAGA_AMQP_URL": "amqp://127.0.0.1:1/"}
    here |= {"XDG_STATE_HOME": str(tmp_path), "ORDERSAGA_DATA_DIR": str(tmp_path)}
    words = [*path, *ARGUMENTS.get(path, [])]
    result = CliRunner(env=here).invoke(cli.build_application(words), words)
    assert isinstance(result.exception, NamedError), result.output
    assert "127.0.0.1:1" in str(result.exception) or str(tmp_path) in str(result.exception)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("dead-letters re", ["replay", "restore"]),
        ("do", ["down", "doctor"]),
        ("logs --f", ["--follow"]),
        ("logs pay", ["payment"]),
        ("accounts statement --l", ["--limit"]),
        ("stock o", ["off-sale", "on-sale"]),
    ],
)
def test_the_shell_completes_commands_options_and_names(line: str, completed: list[str], tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.logs.mkdir()
    (layout.logs / "payment.log").touch()
    words = ["ordersaga", *line.split()]
    asked = {"_ORDERSAGA_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    ended = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'ordersaga'; from operations.cli import main; main()"],
        env={**os.environ, **asked, "ORDERSAGA_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stdout.split() == completed


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_explains_itself(name: str) -> None:
    entry = cli.COMMANDS[name]
    assert callable(getattr(importlib.import_module(entry.module), entry.attribute))
    status, text = run(name, "--help")
    assert (status, "Usage:" in text) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["up", "--only", "nonsense"],
        ["up", "--port-offset", "many"],
        ["status", "--nonsense"],
        ["down", "x"],
    ],
)
def test_wrong_usage_has_exit_status_2(words: list[str]) -> None:
    assert run(*words)[0] == 2


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("--only-orders", "1"), "--only-orders"),
        (("--only-faults", "none"), "--only-faults"),
        (("--until", "8"), "--until"),
        (("--trace",), "--trace"),
        (("--seed", "1", "--trace", "--json"), "--trace"),
        (("--seed", "1", "--seeds", "100"), "--seeds"),
        (("--seed", "1", "--first", "0"), "--first"),
        (("--seed", "1", "--processes", "2"), "--processes"),
        (("--seed", "1", "--stop-after", "1"), "--stop-after"),
    ],
)
def test_a_simulation_refuses_options_that_would_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], refused: str
) -> None:
    monkeypatch.setattr(world, "run", lambda *_: pytest.fail("a seed was run"))
    monkeypatch.setattr("operations.commands.simulate.run_seeds", lambda *_, **__: pytest.fail("seeds were run"))
    status, text = run("simulate", *words)
    assert (status, f"Invalid value for {refused}" in text) == (2, True), text


def test_an_unreachable_server_has_exit_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(_: object) -> Callable[[object], None]:
        def application(_: object) -> None:
            raise UnreachableError("no stack runs")

        return application

    monkeypatch.setattr(cli, "build_application", build)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    assert capsys.readouterr().err == "no stack runs\n"


async def test_a_command_in_the_process_of_a_test_knows_nothing_of_the_shell_and_ends_as_ordersaga_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORDERSAGA_URL", "https://a.stack.that.somebody.works.on")
    words = ("down", "--data-dir", str(tmp_path / "none"))
    assert (await run_command(*words, environment={}))[0] == 0
    assert (await run_command(*words, environment={"ORDERSAGA_URL": "https://stack"}))[0] == 2
    assert os.environ["ORDERSAGA_URL"] == "https://a.stack.that.somebody.works.on"

    status, printed, errors = await run_command("down", "--data-dir", "~no-such-user/data", environment={})
    assert (status, printed) == (2, "")
    assert errors.startswith("~no-such-user/data cannot be a data directory")


def test_a_group_of_commands_can_be_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    group = typer.Typer()
    group.command("list")(lambda: typer.echo("listed"))
    group.command("show")(lambda: typer.echo("shown"))
    monkeypatch.setattr("operations.commands.doctor.group", group, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "letters", cli.Entry("operations.commands.doctor", "group", "Handle letters."))
    assert run("letters", "show") == (0, "shown\n")


def test_log_lines_of_errors_go_to_stderr_and_others_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        structlog.get_logger("test").warning("reconnecting")
        structlog.get_logger("test").error("a defect")
        typer.echo("done")

    monkeypatch.setattr("operations.commands.doctor.work", work, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "work", cli.Entry("operations.commands.doctor", "work", "Work."))
    result = CliRunner().invoke(cli.build_application(["work"]), ["work"])
    assert result.stdout == "done\n"
    assert "a defect" in result.stderr
    assert "reconnecting" not in result.output


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "xdg")}


def remember_running(root: Path, environment: dict[str, str]) -> None:
    """Write the state of a stack whose supervisor is this process."""
    root.mkdir()
    processes = (ProcessState("order", "http://127.0.0.1:1234"), ProcessState("mongodb", "mongodb://here/"))
    state = State(
        supervisor=identify(os.getpid()),
        mongodb_url="mongodb://here/",
        amqp_url="amqp://here/",
        database_prefix="mine",
        processes=processes,
    )
    write_state(Layout(root), state)
    remember_as_last_used(root, environment)


def test_the_stack_used_last_is_located(tmp_path: Path, environment: dict[str, str]) -> None:
    remember_running(tmp_path / "stack", environment)
    stack = locate_stack(environment=environment)
    assert (stack.mongodb_url, stack.amqp_url) == ("mongodb://here/", "amqp://here/")
    assert (stack.data_dir, stack.database_prefix) == (tmp_path / "stack", "mine")
    assert stack.urls == {
        "order": "http://127.0.0.1:1234",
        "inventory": "http://127.0.0.1:3009",
        "payment": "http://127.0.0.1:3010",
        "provisioning": "http://127.0.0.1:3011",
        "notification": "http://127.0.0.1:3014",
        "console": "http://127.0.0.1:3012",
        "simulator": "http://127.0.0.1:3013",
    }


def test_commands_use_the_users_of_operations_and_of_maintenance(tmp_path: Path, environment: dict[str, str]) -> None:
    layout = Layout(tmp_path / "stack")
    remember_running(layout.root, environment)
    url = "mongodb://here/?w=majority"
    write_state(layout, replace(read_state(layout), mongodb_url=url, mongodb_has_users=True))
    with pytest.raises(UnreachableError, match="mongodb-order"):
        locate_stack(environment=environment)
    passwords = load_users(layout.secrets, "mine").passwords
    stack = locate_stack(environment=environment)
    for found, user in ((stack.mongodb_url, "operations"), (stack.url_for_changes, "maintenance")):
        assert found == f"mongodb://{user}:{passwords[user]}@here/?w=majority&authSource=mine_operations"
    assert stack.data_dir == layout.root
    assert not [password for password in passwords.values() if password in f"{stack} {stack.as_json()}"]
    given = {**environment, "ORDERSAGA_MONGODB_URL": "mongodb://there/"}
    assert locate_stack(environment=given).url_for_changes == "mongodb://there/"


def test_what_the_environment_names_comes_first(tmp_path: Path, environment: dict[str, str]) -> None:
    remember_running(tmp_path / "stack", environment)
    named = {"ORDERSAGA_AMQP_URL": "amqp://there/", "ORDERSAGA_ORDER_URL": "http://there"}
    stack = locate_stack(environment={**environment, **named, "ORDERSAGA_DATABASE_PREFIX": "theirs"})
    assert (stack.mongodb_url, stack.amqp_url) == ("mongodb://here/", "amqp://there/")
    assert (stack.urls["order"], stack.database_prefix) == ("http://there", "theirs")
    assert stack.data_dir is None  # one of the servers does not belong to this directory


def test_a_stack_is_described_in_one_line_without_passwords(tmp_path: Path, environment: dict[str, str]) -> None:
    root = tmp_path / "stack"
    remember_running(root, environment)
    assert locate_stack(environment=environment).describe() == f"{root} (databases mine_*)"
    stack = locate_stack(environment={**environment, "ORDERSAGA_AMQP_URL": "amqp://user:secret@there/"})
    assert stack.describe() == "mongodb://here/ and amqp://user:***@there/ (databases mine_*)"
    assert "secret" not in str(stack.as_json())


@pytest.mark.parametrize("variable", ["MONGODB_URL", "AMQP_URL", "ORDER_URL"])
def test_an_invalid_url_is_reported_without_its_password(environment: dict[str, str], variable: str) -> None:
    wrong = {f"ORDERSAGA_{variable}": "amqp://u:S3#CR3T@h/"} if variable == "AMQP_URL" else {}
    wrong = wrong or {f"ORDERSAGA_{variable}": "http://u:S3/CR3T@h/"}
    with pytest.raises(UnreachableError, match=f"ORDERSAGA_{variable}=.*percent-encoded") as raised:
        locate_stack(environment={**environment, **wrong})
    assert "CR3T" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("DATABASE_PREFIX", 'a/b c"', "letters, digits"), ("CONSOLE_URL", "nonsense", "https://user:password@host")],
)
def test_other_variables_that_identify_a_stack_are_checked_first(
    environment: dict[str, str], name: str, value: str, allowed: str
) -> None:
    with pytest.raises(UnreachableError, match=f"ORDERSAGA_{name}=.*is not valid: .*{allowed}"):
        locate_stack(environment={**environment, f"ORDERSAGA_{name}": value})


def test_a_slash_at_the_end_of_a_service_s_url_changes_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    remember_running(tmp_path / "stack", environment)
    stack = locate_stack(environment={**environment, "ORDERSAGA_ORDER_URL": "http://there:1/"})
    assert stack.urls["order"] == "http://there:1"


def test_a_data_directory_that_cannot_be_one_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for named in (str(loop), "~no-such-user/data"):
        for command in ("up", "down", "status", "doctor"):
            monkeypatch.setattr("sys.argv", ["ordersaga", command, "--data-dir", named])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert (command, ended.value.code) == (command, 2)
            assert f"{named} cannot be a data directory" in capsys.readouterr().err


def test_a_data_directory_without_access_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/"):  # root may search everything
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return known(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    status, text = run("down", "--data-dir", str(tmp_path / "closed" / "data"))
    assert status == 1
    assert "cannot be ended" in text
    assert "Permission denied" in text
    assert check_disk(tmp_path / "closed" / "data").subject == "disk"


def test_a_state_that_cannot_be_read_is_reported_unless_the_environment_names_the_servers(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "state.json").write_bytes(b"")
    with pytest.raises(UnreachableError, match=r"state\.json cannot be read"):
        locate_stack(tmp_path, environment)
    named = {"ORDERSAGA_MONGODB_URL": "mongodb://there/", "ORDERSAGA_AMQP_URL": "amqp://there/"}
    assert locate_stack(tmp_path, {**environment, **named}).mongodb_url == "mongodb://there/"


def test_the_environment_alone_is_enough(environment: dict[str, str]) -> None:
    named = {"ORDERSAGA_MONGODB_URL": "mongodb://there/", "ORDERSAGA_AMQP_URL": "amqp://there/"}
    stack = locate_stack(environment={**environment, **named})
    assert (stack.data_dir, stack.urls["payment"]) == (None, "http://127.0.0.1:3010")


def test_a_stack_that_does_not_run_is_not_located(tmp_path: Path, environment: dict[str, str]) -> None:
    root = tmp_path / "stack"
    root.mkdir()
    write_state(Layout(root), State(mongodb_url="mongodb://here/", amqp_url="amqp://here/"))
    with pytest.raises(UnreachableError, match=f"no stack runs in {root}"):
        locate_stack(root, environment)


def test_commands_of_a_stack_do_without_the_web_framework() -> None:
    """It takes a good part of their start."""
    code = "import sys, operations.commands.stack, operations.commands.remote.status; print('fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
