"""The plan of a stack, for various options and environments."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from operations.stack import run
from operations.stack.environment import unknown_settings
from operations.stack.layout import Layout
from operations.stack.mongod import Mongod, cache_gigabytes, find_mongod
from operations.stack.plan import StackPlan, make_plan
from operations.stack.ports import PortClaims, PortTakenError
from operations.stack.program import ServerMissingError
from operations.stack.rabbitmq import find_rabbitmq
from operations.stack.run import StackOptions, is_cluster
from operations.stack.services import ServiceProgram, choose_services
from operations.stack.start import StackStartError
from operations.stack.state import State, write_state
from operations.stack.supervisor import restart_delay
from provisioning_service.settings import ProvisioningSettings
from shared.services import PROCESSES, SERVICES, SIMULATOR
from shared.settings import load
from tests.support.commands import run_command

GIVEN = {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/", "ORDERSAGA_AMQP_URL": "amqp://elsewhere/"}
NODES = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
PROVIDER = {"ORDERSAGA_SMARTVPS_URL": "https://reseller"}


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[PortClaims]:
    with PortClaims(tmp_path / "claims") as own:
        yield own


def plan(
    claims: PortClaims,
    tmp_path: Path,
    environment: dict[str, str],
    services: tuple[str, ...] = tuple(PROCESSES),
    offset: int | None = None,
    stored: State | None = None,
    grpc: bool = False,
    cluster: bool = False,
) -> StackPlan:
    return make_plan(
        Layout(tmp_path), services, offset, stored or State(), claims, environment, grpc=grpc, cluster=cluster
    )


def program_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def settings_of(made: StackPlan, name: str) -> Mapping[str, str]:
    """Return the environment of a planned process."""
    return next(program for stage in made.stages for program in stage if program.name == name).prepare().environment


def test_with_both_servers_given_only_services_and_the_simulator_are_started(
    claims: PortClaims, tmp_path: Path
) -> None:
    made = plan(claims, tmp_path, GIVEN)
    assert [[program.name for program in stage] for stage in made.stages] == [[], [SIMULATOR.name], list(SERVICES)]
    assert (made.state.mongodb_url, made.state.amqp_url) == ("mongodb://elsewhere/", "amqp://elsewhere/")


@pytest.mark.parametrize(
    ("given", "services", "on"),
    [
        ({}, tuple(PROCESSES), True),
        ({}, ("order", "inventory"), False),
        ({"ORDERSAGA_WEBHOOKS": "on"}, ("order", "inventory"), True),
        ({"ORDERSAGA_WEBHOOKS": ""}, ("order", "inventory"), False),
        ({"ORDERSAGA_WEBHOOKS": "off"}, tuple(PROCESSES), False),
        ({}, (), True),  # whoever starts the services decides
        ({}, ("simulator", "console"), True),
        (GIVEN, ("order", "inventory"), True),  # others may use that broker as well
    ],
)
def test_webhooks_are_off_without_the_service_that_sends_them(
    claims: PortClaims, tmp_path: Path, given: dict[str, str], services: tuple[str, ...], on: bool
) -> None:
    made = plan(claims, tmp_path, given, services)
    assert (made.state.webhooks, made.state.topology_options.webhooks) == (on, on)
    if "order" in services:
        assert (settings_of(made, "order").get("ORDERSAGA_WEBHOOKS") or "on") == ("on" if on else "off")


def test_webhooks_stay_on_where_they_may_have_been_registered(claims: PortClaims, tmp_path: Path) -> None:
    before = plan(claims, tmp_path, {}).state
    assert plan(claims, tmp_path, {}, ("order", "inventory"), stored=before).state.webhooks
    never = plan(claims, tmp_path, {}, ("order",)).state
    assert not plan(claims, tmp_path, {}, ("order", "inventory"), stored=never).state.webhooks


def test_an_invalid_switch_of_webhooks_is_named(claims: PortClaims, tmp_path: Path) -> None:
    with pytest.raises(StackStartError, match="ORDERSAGA_WEBHOOKS='no' is not valid: on and off are allowed"):
        plan(claims, tmp_path, {"ORDERSAGA_WEBHOOKS": "no"})


def test_services_get_the_environment_and_where_their_servers_are(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(
        claims, tmp_path, {**GIVEN, "ORDERSAGA_SAGA_TIMEOUT_SECONDS": "7", "ORDERSAGA_HTTP_PORT": "1"}, ("order",)
    )
    environment = settings_of(made, "order")
    assert environment["ORDERSAGA_SAGA_TIMEOUT_SECONDS"] == "7"
    assert environment["ORDERSAGA_HTTP_PORT"] == str(made.state.ports["order"]) != "1"
    assert environment["ORDERSAGA_MONGODB_URL"] == "mongodb://elsewhere/"
    assert environment["ORDERSAGA_AMQP_URL"] == "amqp://elsewhere/"


def test_each_service_gets_its_own_user_of_the_broker_and_declares_nothing(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/", "ORDERSAGA_TOPOLOGY": "declare"})
    passwords = {file.name: file.read_text().strip() for file in (tmp_path / "secrets").iterdir()}
    address = f"127.0.0.1:{made.state.ports['amqp']}/ordersaga"
    for name, service in SERVICES.items():
        environment = settings_of(made, name)
        password = passwords[f"rabbitmq-{service.user}"]
        assert environment["ORDERSAGA_AMQP_URL"] == f"amqp://{service.user}:{password}@{address}"
        assert environment["ORDERSAGA_TOPOLOGY"] == "check"
    assert made.state.amqp_url == f"amqp://deployer:{passwords['rabbitmq-deployer']}@{address}"
    assert "ORDERSAGA_AMQP_URL" not in settings_of(made, SIMULATOR.name)


def test_each_service_gets_its_own_user_of_mongodb_and_the_state_has_no_password(
    claims: PortClaims, tmp_path: Path
) -> None:
    given = {"ORDERSAGA_AMQP_URL": "amqp://elsewhere/", "ORDERSAGA_DATABASE_PREFIX": "shop"}
    made = plan(claims, tmp_path, given)
    address = f"127.0.0.1:{made.state.ports['mongodb']}/?replicaSet=rs0&w=majority"
    for name, service in SERVICES.items():
        password = (tmp_path / "secrets" / f"mongodb-{service.user}").read_text().strip()
        url = f"mongodb://{service.user}:{password}@{address}&authSource=shop_{service.database}"
        assert settings_of(made, name)["ORDERSAGA_MONGODB_URL"] == url
    assert (made.state.mongodb_url, made.state.mongodb_has_users) == (f"mongodb://{address}", True)
    assert "ORDERSAGA_MONGODB_URL" not in settings_of(made, SIMULATOR.name)
    key_file = tmp_path / "secrets" / "mongodb-key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    mongod = next(program for stage in made.stages for program in stage if program.name == "mongodb")
    assert ("--auth", "--keyFile", str(key_file)) == mongod.prepare().argv[-3:]


def test_a_given_mongodb_gets_no_users(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/"})
    assert {settings_of(made, name)["ORDERSAGA_MONGODB_URL"] for name in SERVICES} == {"mongodb://elsewhere/"}
    assert not made.state.mongodb_has_users
    assert not list((tmp_path / "secrets").glob("mongodb-*"))


@pytest.mark.parametrize(("given", "expected"), [({}, "declare"), ({"ORDERSAGA_TOPOLOGY": "check"}, "check")])
def test_on_a_given_broker_services_declare_the_topology_unless_told_otherwise(
    claims: PortClaims, tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    made = plan(claims, tmp_path, GIVEN | given)
    assert {settings_of(made, name)["ORDERSAGA_TOPOLOGY"] for name in SERVICES} == {expected}


def test_a_cluster_has_three_of_each_server_and_every_service_knows_all_of_them(
    claims: PortClaims, tmp_path: Path
) -> None:
    made = plan(claims, tmp_path, {}, cluster=True)
    assert [[program.name for program in stage] for stage in made.stages[:3]] == [
        ["epmd"],
        ["mongodb", "mongodb-2", "mongodb-3", "rabbitmq"],
        ["rabbitmq-2", "rabbitmq-3", SIMULATOR.name],
    ]
    ports = made.state.ports
    members = ",".join(f"127.0.0.1:{ports[name]}" for name in ("mongodb", "mongodb-2", "mongodb-3"))
    nodes = [f"127.0.0.1:{ports[name]}/ordersaga" for name in ("amqp", "amqp-2", "amqp-3")]
    of_order = settings_of(made, "order")
    assert (
        f"@{members}/?replicaSet=rs0&w=majority&connectTimeoutMS=2000&heartbeatFrequencyMS=2000&"
        in (of_order["ORDERSAGA_MONGODB_URL"])
    )
    assert [url.partition("@")[2] for url in of_order["ORDERSAGA_AMQP_URL"].split(",")] == nodes
    assert {url.split(":")[1] for url in of_order["ORDERSAGA_AMQP_URL"].split(",")} == {"//order"}
    assert made.state.cluster


def test_a_cluster_has_what_makes_it_miss_a_silent_node_early(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {}, ("order",), cluster=True)
    programs = {program.name: program for stage in made.stages for program in stage}
    for name in NODES:
        programs[name].prepare()
        configuration = (tmp_path / name / "rabbitmq.conf").read_text().splitlines()
        assert {"net_ticktime = 4", "cluster_partition_handling = pause_minority"} < set(configuration)
        assert "{aten, [{poll_interval, 1000}]}" in (tmp_path / name / "advanced.config").read_text()
        assert ("cluster_formation.classic_config" in "".join(configuration)) == (name != "rabbitmq")
    assert {settings_of(made, name)["HOME"] for name in programs if "rabbit" in name} == {str(tmp_path / "rabbitmq")}


def test_nodes_with_data_start_together_since_none_of_them_is_complete_alone(
    claims: PortClaims, tmp_path: Path
) -> None:
    for name in NODES[:2]:
        (tmp_path / name / "data" / "a-node@localhost").mkdir(parents=True)
    made = plan(claims, tmp_path, {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/"}, ("order",), cluster=True)
    assert [[program.name for program in stage] for stage in made.stages[1:3]] == [list(NODES[:2]), list(NODES[2:])]


def test_a_cluster_may_have_one_server_of_somebody_else_but_not_both(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/"}, ("order",), cluster=True)
    assert [program.name for stage in made.stages[1:3] for program in stage] == list(NODES)
    with pytest.raises(StackStartError, match="--cluster starts three of each server, but ORDERSAGA_MONGODB_URL and"):
        plan(claims, tmp_path, GIVEN, cluster=True)


def test_a_former_cluster_runs_as_one_unless_both_servers_are_somebody_elses(tmp_path: Path) -> None:
    layout, said = Layout(tmp_path), Said()
    (tmp_path / "mongodb-2").mkdir()
    options = StackOptions(tmp_path, ())
    assert not is_cluster(layout, options, said, GIVEN)
    assert not is_cluster(layout, options, said, {f"{name}_FILE": "/a/file" for name in GIVEN})
    assert said.events == []
    assert is_cluster(layout, options, said, {"ORDERSAGA_MONGODB_URL": "mongodb://elsewhere/"})
    assert said.events == ["the data is that of a cluster, so it runs as one; --fresh deletes the data"]
    assert is_cluster(layout, replace(options, cluster=True), said, GIVEN), "which the plan refuses"


def test_servers_of_a_cluster_that_were_never_all_ready_start_anew_as_what_is_asked_for(
    claims: PortClaims, tmp_path: Path
) -> None:
    layout, said = Layout(tmp_path), Said()
    for name in ("mongodb", "mongodb-2", "rabbitmq-2"):
        (tmp_path / name).mkdir()
    write_state(layout, State(cluster=True, is_new_cluster=True))

    supervisor = run._prepare(layout, StackOptions(tmp_path, ()), said, {"XDG_STATE_HOME": str(tmp_path)}, claims)

    assert said.events == ["the servers of a cluster were never all ready here, so they start anew, without data"]
    assert not any((tmp_path / name).exists() for name in ("mongodb-2", "rabbitmq-2"))
    assert not supervisor.state.cluster


class Said:
    """Keeps the events of a stack."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_change(self, state: State) -> None:
        pass

    def on_event(self, text: str) -> None:
        self.events.append(text)


SECRETS = {
    "ORDERSAGA_STRIPE_API_KEY": "sk_secret",
    "ORDERSAGA_CREDENTIALS_KEY": Fernet.generate_key().decode(),
    "ORDERSAGA_SMARTVPS_PASSWORD": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "RABBITMQ_DEFAULT_PASS": "secret",
}
COMMON = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
FOR_SERVICES = {
    "https_proxy": "http://proxy",
    "SSL_CERT_FILE": "/ca.pem",
    "OTEL_SERVICE_NAME": "x",
    "PYTHONHASHSEED": "1",
}


def test_each_program_gets_the_part_of_the_environment_that_it_needs(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {**SECRETS, **COMMON, **FOR_SERVICES, "ORDERSAGA_NONSENSE": "x"})
    having = {
        secret: {name for name in (*PROCESSES, "mongodb", "rabbitmq", "epmd") if secret in settings_of(made, name)}
        for secret in (*SECRETS, "ORDERSAGA_NONSENSE")
    }
    assert having == {
        "ORDERSAGA_STRIPE_API_KEY": {"payment"},
        "ORDERSAGA_CREDENTIALS_KEY": {"provisioning"},
        "ORDERSAGA_SMARTVPS_PASSWORD": {"provisioning", SIMULATOR.name},
        "AWS_SECRET_ACCESS_KEY": set(),
        "RABBITMQ_DEFAULT_PASS": set(),
        "ORDERSAGA_NONSENSE": set(),
    }
    for name in PROCESSES:
        assert {**COMMON, **FOR_SERVICES}.items() <= settings_of(made, name).items()
    for name in ("mongodb", "rabbitmq", "epmd"):
        environment = settings_of(made, name)
        assert environment.keys() >= {"PATH", "TZ"}
        assert not [variable for variable in environment if variable.startswith("ORDERSAGA_")]
        assert not environment.keys() & FOR_SERVICES.keys()


def test_a_setting_that_no_program_has_is_detected() -> None:
    environment = {**GIVEN, **SECRETS, "ORDERSAGA_DATA_DIR": "x", "ORDERSAGA_TEST_MONGODB_URL": "x"}
    kinds = [kind.settings for kind in PROCESSES.values()]
    assert unknown_settings(environment, kinds) == []
    wrong = {"ORDERSAGA_SAGA_TIMEOUT": "7", "ORDERSAGA_DATA_DIR_FILE": "/run/secrets/stripe"}
    assert unknown_settings({**environment, **wrong}, kinds) == sorted(wrong)


def test_mongod_does_not_take_zlib(tmp_path: Path) -> None:
    argv = Mongod(find_mongod(), tmp_path, 1, {}).prepare().argv
    assert argv[argv.index("--networkMessageCompressors") + 1] == "snappy,zstd"


@pytest.mark.parametrize(
    ("gibibytes", "servers", "cache"), [(24, 1, 6), (24, 3, 2), (4, 1, 1), (2, 1, 1), (8, 3, 1), (0.5, 1, 1)]
)
def test_the_caches_of_mongodb_take_a_quarter_of_the_memory_together(
    gibibytes: float, servers: int, cache: float
) -> None:
    assert cache_gigabytes(int(gibibytes * 2**30), servers) == cache


def test_provisioning_gets_the_login_of_the_simulator(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, {**GIVEN, "ORDERSAGA_SMARTVPS_PASSWORD": "mine"})
    buyer, seller = settings_of(made, "provisioning"), settings_of(made, SIMULATOR.name)
    assert buyer["ORDERSAGA_SMARTVPS_URL"] == f"http://127.0.0.1:{made.state.ports[SIMULATOR.name]}"
    for name, value in {"ORDERSAGA_SMARTVPS_USERNAME": "simulator", "ORDERSAGA_SMARTVPS_PASSWORD": "mine"}.items():
        assert (buyer[name], seller[name]) == (value, value)


def test_the_simulator_gets_no_setting_of_the_stack(claims: PortClaims, tmp_path: Path) -> None:
    settings = settings_of(plan(claims, tmp_path, {**GIVEN, "ORDERSAGA_CREDENTIALS_KEY": "ours"}), SIMULATOR.name)
    assert not settings.keys() & {*GIVEN, "ORDERSAGA_CREDENTIALS_KEY"}
    assert settings["ORDERSAGA_HTTP_PORT"].isdigit()


def test_a_given_provider_is_used_unchanged(claims: PortClaims, tmp_path: Path) -> None:
    settings = settings_of(plan(claims, tmp_path, {**GIVEN, **PROVIDER}), "provisioning")
    assert settings["ORDERSAGA_SMARTVPS_URL"] == "https://reseller"
    assert "ORDERSAGA_SMARTVPS_USERNAME" not in settings  # the service reports that it is missing


def test_without_simulator_and_provider_there_is_no_provider_url(claims: PortClaims, tmp_path: Path) -> None:
    settings = settings_of(plan(claims, tmp_path, GIVEN, ("provisioning",)), "provisioning")
    assert "ORDERSAGA_SMARTVPS_URL" not in settings


def test_the_settings_that_provisioning_is_started_with_are_complete(
    claims: PortClaims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings_of(plan(claims, tmp_path, GIVEN), "provisioning").items():
        monkeypatch.setenv(name, value)
    assert load(ProvisioningSettings).smartvps_url


def key_of(made: StackPlan) -> str:
    settings = settings_of(made, "provisioning")
    if file := settings.get("ORDERSAGA_CREDENTIALS_KEY_FILE"):
        return Path(file).read_text().strip()
    return settings["ORDERSAGA_CREDENTIALS_KEY"]


def test_the_credentials_key_is_created_once_and_readable_by_its_owner_only(claims: PortClaims, tmp_path: Path) -> None:
    first, second = (key_of(plan(claims, tmp_path, GIVEN, ("provisioning",))) for _ in range(2))
    assert first == second
    Fernet(first)
    file = Layout(tmp_path).credentials_key
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "claims",
        file.name,
        "keys.json",
        "keys.json.lock",
        "secrets",
    ]


def test_two_stacks_have_different_keys(claims: PortClaims, tmp_path: Path) -> None:
    keys = set()
    for side in (tmp_path / "one", tmp_path / "other"):
        side.mkdir()
        keys.add(key_of(plan(claims, side, GIVEN, ("provisioning",))))
    assert len(keys) == 2


@pytest.mark.parametrize("damaged", [b"", b"half a k", b"\xff\xfe"])
def test_a_key_file_that_holds_no_key_is_reported_and_not_overwritten(
    claims: PortClaims, tmp_path: Path, damaged: bytes
) -> None:
    file = Layout(tmp_path).credentials_key
    file.write_bytes(damaged)
    with pytest.raises(
        StackStartError, match=r"credentials.key does not contain a valid key\. Restore the original key"
    ):
        plan(claims, tmp_path, GIVEN, ("provisioning",))
    assert file.read_bytes() == damaged


def test_a_given_key_is_used_and_not_stored(claims: PortClaims, tmp_path: Path) -> None:
    given = {**GIVEN, "ORDERSAGA_CREDENTIALS_KEY": "given"}
    assert key_of(plan(claims, tmp_path, given, ("provisioning",))) == "given"
    assert not Layout(tmp_path).credentials_key.exists()


def test_only_the_service_that_needs_the_key_gets_it(claims: PortClaims, tmp_path: Path) -> None:
    made = plan(claims, tmp_path, GIVEN)
    having = [name for name in PROCESSES if "ORDERSAGA_CREDENTIALS_KEY_FILE" in settings_of(made, name)]
    assert having == ["provisioning"]


def test_remembered_ports_are_used_again(claims: PortClaims, tmp_path: Path) -> None:
    port = claims.claim_free()
    claims.release()
    made = plan(claims, tmp_path, GIVEN, ("order",), stored=State(ports={"order": port, "amqp": 5}))
    assert made.state.ports == {"order": port, "amqp": 5}


def test_an_offset_is_added_to_every_default_port(claims: PortClaims, tmp_path: Path) -> None:
    offset = claims.claim_free() - 3008
    claims.release()
    assert plan(claims, tmp_path, GIVEN, ("order",), offset).state.ports == {"order": 3008 + offset}
    with PortClaims(tmp_path / "claims") as other, pytest.raises(PortTakenError, match=f"{3008 + offset}"):
        plan(other, tmp_path, GIVEN, ("order",), offset)


def test_grpc_is_off_unless_it_is_wanted_and_only_orders_are_taken_over_it(claims: PortClaims, tmp_path: Path) -> None:
    assert plan(claims, tmp_path, GIVEN).state.grpc_port is None
    services = ("order", "inventory")
    made = plan(claims, tmp_path, GIVEN, services, grpc=True)
    port = str(made.state.ports["grpc"])
    assert made.state.grpc_port == settings_of(made, "order")["ORDERSAGA_GRPC_PORT"] == port
    assert "ORDERSAGA_GRPC_PORT" not in settings_of(made, "inventory")
    # Chosen by the environment, as the services read it.
    assert plan(claims, tmp_path, GIVEN | {"ORDERSAGA_GRPC_PORT": "4711"}, ("order",)).state.grpc_port == "4711"
    assert plan(claims, tmp_path, GIVEN, ("payment",), grpc=True).state.grpc_port is None


def test_two_stacks_have_different_node_names_and_one_keeps_its_own(claims: PortClaims, tmp_path: Path) -> None:
    names = [plan(claims, tmp_path, GIVEN, ("order",)).state.node for _ in range(2)]
    assert names[0] != names[1]
    assert plan(claims, tmp_path, GIVEN, ("order",), stored=State(node="kept")).state.node == "kept"


def test_a_node_is_identified_by_its_data_when_the_state_is_lost(claims: PortClaims, tmp_path: Path) -> None:
    (tmp_path / "rabbitmq" / "data" / "ordersaga-12ab@localhost").mkdir(parents=True)
    (tmp_path / "rabbitmq" / "data" / "ordersaga-12ab@localhost-feature_flags").touch()
    assert plan(claims, tmp_path, GIVEN, ("order",)).state.node == "ordersaga-12ab"


def test_a_service_that_listens_everywhere_is_asked_on_this_machine() -> None:
    service = ServiceProgram("order", 3008, {"ORDERSAGA_HTTP_HOST": "0.0.0.0"})
    assert service.url == "http://127.0.0.1:3008"


def test_chosen_services_keep_the_order_of_their_start() -> None:
    assert choose_services(None, {}) == list(PROCESSES)
    assert choose_services("payment, order") == ["order", "payment"]
    assert choose_services("") == []


def test_the_simulator_is_left_out_where_a_provider_is_given_unless_it_is_named() -> None:
    assert choose_services(None, PROVIDER) == list(SERVICES)
    assert choose_services(None, {"ORDERSAGA_SMARTVPS_URL": ""}) == list(PROCESSES)
    assert choose_services("simulator,order", PROVIDER) == ["order", SIMULATOR.name]


@pytest.mark.parametrize("wrong", ["nonsense", "order,nonsense"])
def test_an_unknown_service_is_refused_with_the_allowed_names(wrong: str) -> None:
    names = "order, inventory, payment, provisioning, notification, console, simulator"
    with pytest.raises(ValueError, match=f"choose from {names}"):
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


def test_a_named_rabbitmq_that_does_not_exist_is_not_replaced_by_another() -> None:
    with pytest.raises(ServerMissingError, match="rabbitmq-server was not found"):
        find_rabbitmq({"ORDERSAGA_RABBITMQ_SERVER": "/no/such"})


def test_restarts_are_quick_at_first_and_bounded_later() -> None:
    assert [restart_delay(deaths) for deaths in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    assert restart_delay(10**6) == 10.0


def test_secrets_in_files_stay_there_and_are_read_by_their_services_alone(claims: PortClaims, tmp_path: Path) -> None:
    files = {
        "MONGODB_URL": "mongodb://given/",
        "AMQP_URL": "amqp://given/",
        "CREDENTIALS_KEY": Fernet.generate_key().decode(),
    }
    environment = {}
    for name, value in files.items():
        (tmp_path / name).write_text(value)
        environment[f"ORDERSAGA_{name}_FILE"] = str(tmp_path / name)
    made = plan(claims, tmp_path, environment)
    assert (made.state.mongodb_url, made.state.amqp_url) == ("mongodb://given/", "amqp://given/")
    assert not (tmp_path / "credentials.key").exists()
    for name in SERVICES:
        passed_on = settings_of(made, name)
        assert passed_on["ORDERSAGA_AMQP_URL_FILE"] == str(tmp_path / "AMQP_URL")
        assert ("ORDERSAGA_CREDENTIALS_KEY_FILE" in passed_on) == (name == "provisioning")
        assert not {"ORDERSAGA_MONGODB_URL", "ORDERSAGA_AMQP_URL", "ORDERSAGA_CREDENTIALS_KEY"} & passed_on.keys()


def test_a_stack_with_a_secret_in_a_missing_file_does_not_start(claims: PortClaims, tmp_path: Path) -> None:
    with pytest.raises(StackStartError, match="ORDERSAGA_STRIPE_API_KEY_FILE=/gone cannot be read: No such file"):
        plan(claims, tmp_path, {"ORDERSAGA_STRIPE_API_KEY_FILE": "/gone"})


@pytest.mark.parametrize("variable", ["ORDERSAGA_TLS_CA_FILE", "ORDERSAGA_TLS_CLIENT_CERT_FILE"])
def test_a_stack_with_a_certificate_in_a_missing_file_does_not_start(
    claims: PortClaims, tmp_path: Path, variable: str
) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    with pytest.raises(StackStartError, match=f"{variable}=/nowhere.pem cannot be read: No such file or directory"):
        plan(claims, tmp_path, {"ORDERSAGA_TLS_CLIENT_KEY_FILE": str(key), variable: "/nowhere.pem"})


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ({}, PROCESSES),
        ({"ORDERSAGA_SMARTVPS_URL": "https://reseller"}, SERVICES),
        ({"ORDERSAGA_SMARTVPS_URL_FILE": "/run/secrets/url"}, SERVICES),
    ],
)
async def test_up_starts_no_simulator_where_a_provider_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], started: Mapping[str, object]
) -> None:
    asked: list[StackOptions] = []
    monkeypatch.setattr("operations.commands.stack.run_stack", lambda options, _: asked.append(options))
    status, _, errors = await run_command("up", "--data-dir", str(tmp_path), environment=given)
    assert (status, errors) == (0, "")
    assert [options.services for options in asked] == [tuple(started)]
