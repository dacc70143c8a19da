"""deploy/kubernetes against the code and the schemas of Kubernetes: settings, ports, secrets, network, confinement.

Resources of operators (RabbitmqCluster and so on) have no schema here. `make lint-kubernetes` adds checkov and trivy.
"""

import importlib
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pymongo.uri_parser import parse_uri

from deploy.kubernetes.copies import copies
from deploy.kubernetes.create_secrets import Secrets, main
from operations.settings import locate_stack
from operations.stack.api_keys import list_keys
from operations.stack.rabbitmq import advanced_config
from operations.stack.rabbitmq_cluster import ADVANCED_CLUSTER_CONFIGURATION, NET_TICK_SECONDS
from shared.access.keys import split_key
from shared.access.permissions import Role
from shared.broker_rights import DEPLOYER, RIGHTS, VIRTUAL_HOST
from shared.service import ABANDON_SECONDS, CLOSE_SECONDS, GRACE_SECONDS
from shared.services import CONSOLE, SERVICES, Service
from shared.settings import ServiceSettings
from shared.topology import INBOXES, MAX_MESSAGE_BYTES
from shared.urls import split_amqp_url
from tests.support.manifests import (
    KUBERNETES,
    NAME,
    ROOT,
    TOOLS,
    Manifest,
    Manifests,
    containers,
    read_secrets,
    render,
    secret_files,
)

OVERLAYS = ("overlays/single", "example")
"""The example is the overlay `ha` with all components."""
OF_OPERATORS = {"overlays/single": 0, "example": 14}
"""The resources without a schema."""
OTHERS = {"mongodb": 27017, "rabbitmq": 5672}
CLIENTS, MONITORING, SCALING = ({f"ordersaga-{name}": "true"} for name in ("clients", "monitoring", "scaling"))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(overlay: str) -> Manifests:
    return Manifests.of(overlay)


@pytest.fixture(scope="module")
def secrets_directory(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets")
    for name in ("smartvps-username", "smartvps-password"):
        (directory / name).write_text(f"{name}\n")
    (directory / "stripe-api-key").write_text("sk_test_of_the_operator\n")
    create_secrets("single" if overlay == "overlays/single" else "ha", directory)
    return directory


@pytest.fixture(scope="module")
def secrets(secrets_directory: Path) -> Secrets:
    return read_secrets(secrets_directory)


def create_secrets(*arguments: str | Path) -> None:
    overlay, directory, *others = map(str, arguments)
    main([overlay, "--directory", directory, *others])


@pytest.fixture(params=SERVICES.values(), ids=list(SERVICES))
def service(request: pytest.FixtureRequest) -> Service:
    found: Service = request.param
    return found


# --- The manifests themselves. ---


def test_kubernetes_takes_the_manifests(tmp_path: Path) -> None:
    rendered = {directory: tmp_path / directory.replace("/", "-") for directory in OVERLAYS}
    for directory, file in rendered.items():
        file.write_text(render(directory))
    command = [str(TOOLS / "kubernetes-validate"), "--strict", *map(str, rendered.values())]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    for directory, file in rendered.items():
        assert said.count(f"{file} Couldn't find schema") == OF_OPERATORS[directory]
        assert said.count(f"{file} passed for ") > 40


def test_what_is_made_from_other_files_is_current() -> None:
    for path, content in copies().items():
        assert (ROOT / path).read_text() == content, f"{path} is out of date: run `make kubernetes`"


def test_the_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = re.findall(r"\bordersaga:(\S+)", "".join(path.read_text() for path in KUBERNETES.rglob("*.yaml")))
    assert set(ours) == {version}


def test_no_password_is_written_down() -> None:
    for path in KUBERNETES.rglob("*"):
        if path.suffix in (".yaml", ".env", ".conf"):
            assert not re.search(r"://[^@\s]*@|kind: Secret$|stringData", path.read_text(), re.MULTILINE), path


# --- Pods. ---


def test_a_service_is_started_as_up_starts_it(manifests: Manifests, service: Service) -> None:
    pod = manifests.pods()[service.name]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", service.package]
    assert container["ports"] == [{"name": "http", "containerPort": service.port}]
    (port,) = manifests.find("Service", service.name)["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (service.port, "http")
    for selected in (
        manifests.find("Service", service.name)["spec"]["selector"],
        manifests.find("PodDisruptionBudget", service.name)["spec"]["selector"]["matchLabels"],
    ):
        assert selected == {NAME: service.name}


def test_a_service_is_probed_and_has_time_to_end(manifests: Manifests, service: Service) -> None:
    spec = manifests.pods()[service.name]["spec"]
    (container,) = spec["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in asked.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in asked.values()} == {"http"}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = GRACE_SECONDS + ABANDON_SECONDS + 4 * CLOSE_SECONDS
    assert pause >= 5
    assert spec["terminationGracePeriodSeconds"] > pause + drain
    # Unready pods get no requests any more before an upgrade would take the last ready one away.
    assert manifests.find("Deployment", service.name)["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert {one["topologyKey"].rpartition("/")[2] for one in spec["topologySpreadConstraints"]} == {"hostname", "zone"}


def test_every_container_is_confined(manifests: Manifests) -> None:
    namespace = manifests.find("Namespace", "ordersaga")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {one["metadata"]["name"]: one for one in manifests.of_kind("ServiceAccount")}
    for name, pod in manifests.pods().items():
        spec = pod["spec"]
        assert spec["serviceAccountName"] == name
        assert accounts[name]["automountServiceAccountToken"] is spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            confinement = container["securityContext"]
            assert confinement["allowPrivilegeEscalation"] is False
            assert confinement["readOnlyRootFilesystem"] is True
            assert confinement["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys()
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}


# --- Settings and secrets. ---


@pytest.fixture
def environment(
    manifests: Manifests, secrets: Secrets, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of a service, with the files of its secrets."""
    return prepare_environment(manifests, secrets, service.name, tmp_path, monkeypatch)


def prepare_environment(
    manifests: Manifests, secrets: Secrets, pod: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    template = manifests.pods()[pod]
    (container,) = template["spec"]["containers"]
    for path, content in secret_files(template, container, secrets).items():
        file = directory / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o440)
    variables = manifests.environment(container)
    for name in list(os.environ):
        if name.startswith("ORDERSAGA_"):
            monkeypatch.delenv(name)
    given = {name: value.replace("/run/", f"{directory}/run/") for name, value in variables.items()}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def test_a_service_starts_with_its_settings_and_secrets(
    manifests: Manifests, service: Service, environment: dict[str, str]
) -> None:
    settings = settings_class(service)()
    assert environment["ORDERSAGA_KEYS_FILE"] == str(settings.keys_file)
    assert {key.role for key in list_keys(settings.keys_file)} == {Role.ADMIN, Role.VIEWER}  # type: ignore[arg-type]
    of_mongodb = parse_uri(settings.mongodb_url, validate=True)
    assert of_mongodb["username"] == service.user
    assert of_mongodb["options"]["authSource"] == service.database_in(settings.database_prefix)
    for url in split_amqp_url(settings.amqp_url):
        assert (urlsplit(url).username, urlsplit(url).path) == (service.user, f"/{VIRTUAL_HOST}")
    assert set(SERVICES) <= set(settings.known_names)


def settings_class(service: Service) -> type[ServiceSettings]:
    module, _, name = service.settings.partition(":")
    found: type[ServiceSettings] = getattr(importlib.import_module(module), name)
    return found


def test_every_variable_is_a_setting(manifests: Manifests, service: Service) -> None:
    fields = {f"ORDERSAGA_{field.upper()}" for field in settings_class(service).model_fields}
    (container,) = manifests.pods()[service.name]["spec"]["containers"]
    own = {one["name"] for one in container.get("env", ())}
    assert {name.removesuffix("_FILE") for name in own} <= fields
    (settings,) = (one for one in manifests.of_kind("ConfigMap") if one["metadata"]["name"].startswith("settings-"))
    every = {f"ORDERSAGA_{field.upper()}" for one in SERVICES.values() for field in settings_class(one).model_fields}
    assert all(name in every or name.removesuffix("_FILE") in every for name in settings["data"])


def test_every_file_that_is_named_is_there(manifests: Manifests, secrets: Secrets) -> None:
    for name in manifests.pods().keys() - OTHERS.keys():
        pod = manifests.pods()[name]
        (container,) = pod["spec"]["containers"]
        files = secret_files(pod, container, secrets)
        named = {key: path for key, path in manifests.environment(container).items() if key.endswith("_FILE") and path}
        if name in ("topology", "database-users"):
            del named["ORDERSAGA_KEYS_FILE"]  # commands of the broker and the database read no API keys
        assert set(named.values()) <= files.keys(), name


def test_the_console_and_the_commands_find_the_services(
    manifests: Manifests, secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {name: f"http://{name}:{one.port}" for name, one in SERVICES.items()}
    environment = prepare_environment(manifests, secrets, "commands", tmp_path, monkeypatch)
    stack = locate_stack(environment=environment)
    assert stack.urls.items() >= urls.items()
    assert stack.api_key == secrets["commands"]["api-key"]
    assert f"//{DEPLOYER}:" in stack.amqp_url
    monkeypatch.undo()
    prepare_environment(manifests, secrets, CONSOLE.name, tmp_path, monkeypatch)
    del urls[CONSOLE.name]
    settings = settings_class(CONSOLE)()
    assert settings.service_urls == urls  # type: ignore[attr-defined]


def test_each_pod_sees_its_own_secrets_only(manifests: Manifests) -> None:
    seen = {
        name: {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
        for name, pod in manifests.pods().items()
    }
    expected = {
        **{name: {name, "keys"} for name in SERVICES},
        "commands": {"commands", "keys"},
        "topology": {"commands"},
        "database-users": {"database-users"},
        "mongodb": {"mongodb", "database-users"},
        "rabbitmq": {"rabbitmq"},
    }
    assert seen == {name: expected[name] for name in seen}
    topology = manifests.pods()["topology"]["spec"]["volumes"]
    assert [item["key"] for volume in topology for item in volume.get("secret", {}).get("items", ())] == ["amqp-url"]


def test_no_secret_is_in_two_services(secrets: Secrets) -> None:
    of_services = [value for name in SERVICES for value in secrets[name].values()]
    assert len(of_services) == len(set(of_services))
    assert split_key(secrets["monitoring"]["api-key"])
    users = json.loads(secrets["rabbitmq"]["definitions.json"])["users"]
    assert {user["name"] for user in users} == set(RIGHTS)
    assert not any("password" in user for user in users)


def test_secrets_can_be_made_again_and_are_for_their_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "secrets"
    create_secrets("ha", directory)
    first = read_secrets(directory)
    create_secrets("ha", directory)
    second = read_secrets(directory)
    for made in (first, second):
        del made["rabbitmq"]  # hashes with another salt each time
    assert first == second
    said = capsys.readouterr().out
    assert said.startswith("14 Secrets of the namespace ordersaga are in ")
    for path in (directory, *directory.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not any(value in said for content in first.values() for value in content.values())


def test_a_secret_that_others_issue_is_gone_once_its_file_is(tmp_path: Path) -> None:
    key = tmp_path / "stripe-api-key"
    key.write_text("sk_test_of_the_operator\n")
    create_secrets("single", tmp_path)
    assert read_secrets(tmp_path)["payment"]["stripe-api-key"] == "sk_test_of_the_operator"
    key.unlink()
    create_secrets("single", tmp_path)
    assert "stripe-api-key" not in read_secrets(tmp_path)["payment"]
    # What kubectl removes from a Secret: keys that it applied to `data` before.
    kept = {field for item in json.loads((tmp_path / "secrets.yaml").read_text())["items"] for field in item}
    assert kept == {"apiVersion", "kind", "metadata", "type", "data"}


def test_servers_of_the_operator_are_taken(tmp_path: Path) -> None:
    (tmp_path / "administrator").write_text("mongodb://root:secret@db/?replicaSet=rs9\n")
    arguments = ("--mongodb-url", "mongodb://db/?replicaSet=rs9&tls=true", "--broker-url", "amqps://broker:5671")
    create_secrets("ha", tmp_path, *arguments, "--administrator-url", tmp_path / "administrator")
    made = read_secrets(tmp_path)
    assert re.fullmatch(
        r"mongodb://order:\S+@db/\?replicaSet=rs9&tls=true&authSource=ordersaga_orders", made["order"]["mongodb-url"]
    )
    assert re.fullmatch(r"amqps://order:\S+@broker:5671/ordersaga", made["order"]["amqp-url"])
    assert made["scaling"]["order"] == made["order"]["amqp-url"]
    assert made["database-users"]["administrator-url"] == "mongodb://root:secret@db/?replicaSet=rs9"


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--mongodb-url", "mongodb://user:secret@db/?replicaSet=rs0", "without a user"),
        ("--mongodb-url", "mongodb://db:27017", "a URL such as mongodb://host:27017/?replicaSet=rs0 is allowed"),
        ("--broker-url", "broker:5672", "a URL such as amqps://host:5671 is allowed"),
        ("--database-prefix", "a b", "letters, digits"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, allowed: str
) -> None:
    with pytest.raises(SystemExit):
        create_secrets("ha", tmp_path, option, value)
    said = capsys.readouterr().err
    assert allowed in said
    assert "secret@" not in said


def test_the_script_runs_by_its_path_and_names_a_password_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/rabbitmq-order").write_text("too short\n")
    script = ROOT / "deploy/kubernetes/create_secrets.py"
    command = [sys.executable, str(script), "ha", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/secrets/rabbitmq-order does not contain a password" in done.stderr


# --- Servers. ---


def test_the_broker_loads_its_users_and_takes_no_larger_messages(manifests: Manifests, overlay: str) -> None:
    if overlay == "overlays/single":
        (configuration,) = (one for one in manifests.of_kind("ConfigMap") if "50-ordersaga.conf" in one["data"])
        lines = configuration["data"]["50-ordersaga.conf"].splitlines()
        pod = manifests.pods()["rabbitmq"]["spec"]
    else:
        cluster = manifests.find("RabbitmqCluster", "rabbitmq")["spec"]
        lines = cluster["rabbitmq"]["additionalConfig"].splitlines()
        pod = cluster["override"]["statefulSet"]["spec"]["template"]["spec"]
        assert cluster["replicas"] == 3
        assert f"net_ticktime = {NET_TICK_SECONDS}" in lines
        assert cluster["rabbitmq"]["advancedConfig"] == advanced_config(ADVANCED_CLUSTER_CONFIGURATION)
        tools = {"name": "RABBITMQ_CTL_ERL_ARGS", "value": f"-kernel net_ticktime {NET_TICK_SECONDS}"}
        assert tools in pod["containers"][0]["env"]
    assert f"max_message_size = {MAX_MESSAGE_BYTES}" in lines
    (file,) = (line.partition(" = ")[2] for line in lines if line.startswith("load_definitions"))
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts[str(Path(file).parent)]]["secret"]["secretName"] == "rabbitmq"


def test_the_hosts_of_the_servers_are_those_of_the_manifests(
    manifests: Manifests, secrets: Secrets, overlay: str
) -> None:
    brokers = [urlsplit(url).hostname for url in split_amqp_url(secrets["order"]["amqp-url"])]
    members = [host for host, _ in parse_uri(secrets["order"]["mongodb-url"])["nodelist"]]
    if overlay == "overlays/single":
        assert brokers == [manifests.find("Service", "rabbitmq")["metadata"]["name"]]
        name = manifests.find("StatefulSet", "mongodb")["spec"]["serviceName"]
        assert members == [f"mongodb-0.{name}"]
        initiated = next(one for one in containers(manifests.pods()["mongodb"]) if one["name"] == "users")
        assert f" rs0 {members[0]}:27017 " in " ".join(initiated["command"])
    else:
        cluster = manifests.find("RabbitmqCluster", "rabbitmq")["metadata"]["name"]
        assert brokers == [f"{cluster}-server-{n}.{cluster}-nodes.ordersaga" for n in range(3)]
        database = manifests.find("MongoDBCommunity", "mongodb")
        name = database["metadata"]["name"]
        assert members == [f"{name}-{n}.{name}-svc.ordersaga.svc.cluster.local" for n in range(3)]
        assert f"replicaSet={name}&" in secrets["order"]["mongodb-url"]
        (administrator,) = database["spec"]["users"]
        assert secrets[administrator["passwordSecretRef"]["name"]].keys() == {"password"}


def test_users_that_could_not_be_made_again_are_not_ready(tmp_path: Path) -> None:
    (users,) = (one for one in containers(Manifests.of("overlays/single").pods()["mongodb"]) if one["name"] == "users")
    assert users["readinessProbe"]["exec"]["command"] == ["test", "-e", "/tmp/done"]
    done = tmp_path / "done"  # of a container of the same pod that ran before
    done.touch()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    command = [word.replace("/tmp/done", str(done)) for word in users["command"]]
    ended = subprocess.run(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=60)
    assert ended.returncode == 1
    assert not done.exists()


# --- The network. ---


def labels(manifests: Manifests, name: str) -> dict[str, str]:
    """The labels of a pod; operators make some of them."""
    pod = manifests.pods().get(name)
    return pod["metadata"]["labels"] if pod else {NAME: name}


def test_only_connections_that_are_needed_are_allowed(manifests: Manifests) -> None:
    ports = {**{name: one.port for name, one in SERVICES.items()}, **OTHERS}
    needed = {(name, server) for name in (*SERVICES, "commands") for server in OTHERS}
    needed |= {(name, receiver) for name in (CONSOLE.name, "commands") for receiver in SERVICES}
    needed |= {("topology", "rabbitmq"), ("database-users", "mongodb")}
    senders = {*manifests.pods(), *OTHERS}
    allowed = {
        (sender, receiver)
        for sender in senders
        for receiver, port in ports.items()
        if manifests.allows(labels(manifests, sender), labels(manifests, receiver), port)
    }
    between_members = {("mongodb", "mongodb")} if "mongodb" not in manifests.pods() else set()
    assert allowed == {edge for edge in needed if edge[0] in senders} | between_members


def test_nodes_of_a_cluster_reach_each_other(manifests: Manifests, overlay: str) -> None:
    node = labels(manifests, "rabbitmq")
    for port in (4369, 25672):
        assert manifests.allows(node, node, port) is (overlay != "overlays/single")


def test_other_namespaces_reach_what_their_labels_allow(manifests: Manifests, overlay: str) -> None:
    has_components = overlay == "example"
    for name, one in SERVICES.items():
        pod = labels(manifests, name)
        assert not manifests.admits({}, pod, one.port)
        assert manifests.admits(CLIENTS, pod, one.port)
        assert manifests.admits(MONITORING, pod, one.port) is has_components
    broker = labels(manifests, "rabbitmq")
    assert manifests.admits(SCALING, broker, 5672) is has_components
    for namespace in (CLIENTS, MONITORING):
        assert not manifests.admits(namespace, broker, 5672)
        assert not manifests.admits(namespace, labels(manifests, "mongodb"), 27017)


def test_only_services_with_partners_outside_reach_the_internet(manifests: Manifests, overlay: str) -> None:
    outside = {name for name in manifests.pods() if manifests.leaves(labels(manifests, name))}
    assert outside == {"notification", *({"provisioning", "payment", "console"} if overlay == "example" else ())}


# --- Components. ---


@pytest.fixture(scope="module")
def example() -> Manifests:
    return Manifests.of("example")


def test_prometheus_scrapes_every_service_with_a_viewers_key(example: Manifests) -> None:
    (monitor,) = (one["spec"] for one in example.of_kind("ServiceMonitor"))
    scraped = [one for one in example.of_kind("Service") if selects(monitor, one)]
    assert {one["metadata"]["name"] for one in scraped} == set(SERVICES)
    # The job that alerts ask for.
    assert {one["metadata"]["labels"][monitor["jobLabel"]] for one in scraped} == {"ordersaga"}
    (endpoint,) = monitor["endpoints"]
    assert {port["name"] for one in scraped for port in one["spec"]["ports"]} == {endpoint["port"]}
    assert endpoint["authorization"]["credentials"] == {"name": "monitoring", "key": "api-key"}


def selects(monitor: Manifest, one: Manifest) -> bool:
    matched: bool = monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    return matched


def test_the_rules_are_those_of_prometheus(example: Manifests) -> None:
    (rules,) = example.of_kind("PrometheusRule")
    files = [
        yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text()) for name in ("alerts.yml", "objectives.yml")
    ]
    assert rules["spec"] == {"groups": [group for file in files for group in file["groups"]]}


def test_each_service_is_scaled_by_its_own_queue(example: Manifests, tmp_path: Path) -> None:
    create_secrets("ha", tmp_path)
    urls = read_secrets(tmp_path)["scaling"]
    scaled: dict[str, Any] = {one["metadata"]["name"]: one["spec"] for one in example.of_kind("ScaledObject")}
    assert scaled.keys() == SERVICES.keys() - {CONSOLE.name}
    for name, spec in scaled.items():
        (trigger,) = spec["triggers"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert trigger["metadata"]["queueName"] == SERVICES[name].inbox
        assert trigger["metadata"]["queueName"] in INBOXES
        authentication = example.find("TriggerAuthentication", trigger["authenticationRef"]["name"])
        (reference,) = authentication["spec"]["secretTargetRef"]
        assert (reference["name"], reference["key"]) == ("scaling", name)
        assert re.fullmatch(rf"amqp://{name}:\S+@rabbitmq\.ordersaga\.svc:5672/ordersaga", urls[name])
        # KEDA decides, and `kubectl apply` does not set the number back.
        assert "replicas" not in example.find("Deployment", name)["spec"]
    assert example.find("Deployment", CONSOLE.name)["spec"]["replicas"] == 2
