"""What a stack consists of, from what it was asked for and what is given."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.native.display import without_password
from operations.native.layout import Layout
from operations.native.mongod import find_mongod
from operations.native.plan import Plan, make_plan
from operations.native.ports import PortClaims, PortTakenError
from operations.native.program import ServerMissingError
from operations.native.rabbitmq import find_rabbitmq
from operations.native.services import SERVICES, Service, choose_services
from operations.native.state import State
from operations.native.supervisor import restart_delay

GIVEN = {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/", "ORDERSAGA_AMQP_URL": "amqp://elsewhere/"}


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[PortClaims]:
    with PortClaims(tmp_path / "claims") as own:
        yield own


def plan(
    claims: PortClaims,
    tmp_path: Path,
    environment: dict[str, str],
    services: tuple[str, ...] = tuple(SERVICES),
    offset: int | None = None,
    remembered: State | None = None,
) -> Plan:
    return make_plan(Layout(tmp_path), services, offset, remembered or State(), claims, environment)


def program_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_with_both_servers_given_only_services_are_started(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, GIVEN)
    assert [[program.name for program in stage] for stage in made.stages] == [[], [], list(SERVICES)]
    assert (made.state.mongodb_url, made.state.amqp_url) == ("mongodb://elsewhere/", "amqp://elsewhere/")


def test_services_get_the_environment_and_where_their_servers_are(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(
        claims, tmp_path, {**GIVEN, "ORDERSAGA_SAGA_TIMEOUT_SECONDS": "7", "ORDERSAGA_HTTP_PORT": "1"}, ("order",)
    )
    environment = made.stages[-1][0].prepare().environment
    assert environment["ORDERSAGA_SAGA_TIMEOUT_SECONDS"] == "7"
    assert environment["ORDERSAGA_HTTP_PORT"] == str(made.state.ports["order"]) != "1"
    assert environment["ORDERSAGA_MONGODB_URL"] == "mongodb://elsewhere/"
    assert environment["ORDERSAGA_AMQP_URL"] == "amqp://elsewhere/"


def test_remembered_ports_are_used_again(claims: PortClaims, tmp_path: Path) -> None:
    port = claims.claim_free()
    claims.release()
    made = plan(claims, tmp_path, GIVEN, ("order",), remembered=State(ports={"order": port, "amqp": 5}))
    assert made.state.ports == {"order": port, "amqp": 5}


def test_an_offset_is_added_to_every_default_port(claims: PortClaims, tmp_path: Path) -> None:
    offset = claims.claim_free() - 3008
    claims.release()
    assert plan(claims, tmp_path, GIVEN, ("order",), offset).state.ports == {"order": 3008 + offset}
    with PortClaims(tmp_path / "claims") as other, pytest.raises(PortTakenError, match=f"{3008 + offset}"):
        plan(other, tmp_path, GIVEN, ("order",), offset)


def test_two_stacks_have_different_node_names_and_one_keeps_its_own(claims: PortClaims, tmp_path: Path) -> None:
    names = [plan(claims, tmp_path, GIVEN, ("order",)).state.node for _ in range(2)]
    assert names[0] != names[1]
    assert plan(claims, tmp_path, GIVEN, ("order",), remembered=State(node="kept")).state.node == "kept"


def test_a_service_that_listens_everywhere_is_asked_on_this_machine() -> None:
    service = Service("order", "order_service", 3008, "", "", {"ORDERSAGA_HTTP_HOST": "0.0.0.0"})
    assert service.url == "http://127.0.0.1:3008"


def test_chosen_services_keep_the_order_of_their_start() -> None:
    assert choose_services(None) == list(SERVICES)
    assert choose_services("payment, order") == ["order", "payment"]
    assert choose_services("") == []


@pytest.mark.parametrize("wrong", ["nonsense", "order,nonsense"])
def test_an_unknown_service_is_refused_with_what_there_is(wrong: str) -> None:
    with pytest.raises(ValueError, match="there are order, inventory, payment, provisioning"):
        choose_services(wrong)


def test_mongod_comes_from_its_variable_then_from_the_path(tmp_path: Path) -> None:
    named, on_path = program_file(tmp_path / "named"), program_file(tmp_path / "bin" / "mongod")
    assert find_mongod({"ORDERSAGA_MONGOD": str(named), "PATH": str(on_path.parent)}) == named
    assert find_mongod({"PATH": str(on_path.parent)}) == on_path
    with pytest.raises(ServerMissingError, match="ORDERSAGA_MONGOD=/no/such is not an executable file"):
        find_mongod({"ORDERSAGA_MONGOD": "/no/such", "PATH": str(on_path.parent)})


def test_mongod_comes_from_the_package_where_the_path_has_none(tmp_path: Path) -> None:
    assert find_mongod({"PATH": str(tmp_path)}).parts[-4:] == ("fiftyone", "db", "bin", "mongod")


def test_rabbitmq_is_the_script_behind_the_wrapper_that_the_path_has(tmp_path: Path) -> None:
    real = program_file(tmp_path / "lib" / "rabbitmq_server-3.99.1" / "sbin" / "rabbitmq-server")
    (real.parent / "rabbitmq-env").write_text("")
    wrapper = program_file(tmp_path / "bin" / "rabbitmq-script-wrapper")
    (wrapper.parent / "rabbitmq-server").symlink_to(real)
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin" / "rabbitmq-server").symlink_to(wrapper)
    program_file(tmp_path / "sbin" / "epmd")

    found = find_rabbitmq({"PATH": str(tmp_path / "sbin")})

    assert (found.scripts, found.version) == (real.parent, "3.99.1")


def test_a_rabbitmq_that_was_named_and_is_not_there_is_not_replaced_by_another() -> None:
    with pytest.raises(ServerMissingError, match="rabbitmq-server was not found"):
        find_rabbitmq({"ORDERSAGA_RABBITMQ_SERVER": "/no/such"})


def test_restarts_are_quick_at_first_and_bounded_later() -> None:
    assert [restart_delay(deaths) for deaths in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    assert restart_delay(10**6) == 10.0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@127.0.0.1:5672/", "amqp://guest:guest@127.0.0.1:5672/"),
        ("amqp://shop:secret@broker:5672/x", "amqp://shop:***@broker:5672/x"),
        ("mongodb://a:b@one:1,two:2/?replicaSet=rs0", "mongodb://a:***@one:1,two:2/?replicaSet=rs0"),
        ("http://127.0.0.1:3008", "http://127.0.0.1:3008"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
