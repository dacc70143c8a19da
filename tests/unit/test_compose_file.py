"""docker-compose.yml and the Dockerfile against the code: settings, addresses, the version."""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from operations.settings import locate_stack
from operations.stack.broker_users import definitions
from operations.stack.status import external_stack
from provisioning_service.settings import ProvisioningSettings
from shared.broker_rights import RIGHTS, VIRTUAL_HOST
from shared.services import GRPC_PORT, PROCESSES, SERVICES
from shared.settings import ServiceSettings
from shared.topology import MAX_MESSAGE_BYTES
from tests.support.compose_files import compose_services

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose_services("docker-compose.yml")


def test_what_the_image_copies_is_sent_to_the_builder_and_nothing_else() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert {source for sources in copies for source in sources.split()} == sent
    assert all((ROOT / source).exists() for source in sent)


def test_every_setting_of_provisioning_is_passed_on(services: dict[str, Any]) -> None:
    own = ProvisioningSettings.model_fields.keys() - ServiceSettings.model_fields.keys()
    passed_on = services["provisioning"]["environment"]
    assert {f"ORDERSAGA_{name.upper()}" for name in own} <= {name for name, value in passed_on.items() if value is None}


def test_the_broker_takes_no_larger_messages_than_the_one_that_up_starts(services: dict[str, Any]) -> None:
    file = "./deploy/container/rabbitmq.conf"
    assert f"{file}:/etc/rabbitmq/conf.d/50-ordersaga.conf:ro" in services["rabbitmq"]["volumes"]
    assert f"max_message_size = {MAX_MESSAGE_BYTES}" in (ROOT / file).read_text().splitlines()


def test_commands_in_a_container_find_all_services(services: dict[str, Any], tmp_path: Path) -> None:
    urls = {name: f"http://{name}:{kind.port}" for name, kind in SERVICES.items()}
    (tmp_path / "mongodb-url").write_text("mongodb://order:password@mongo:27017/?authSource=ordersaga_orders")
    (tmp_path / "amqp-url").write_text("amqp://order:password@rabbitmq:5672/ordersaga")
    (tmp_path / "api-key").write_text("osk_key")
    for name in (*SERVICES, "commands"):
        given = {key: value for key, value in services[name]["environment"].items() if value}
        environment = {
            key: _interpolated(value).replace("/run/ordersaga", str(tmp_path)) for key, value in given.items()
        }
        assert locate_stack(environment=environment).urls.items() >= urls.items()
        named = external_stack(environment)
        assert named is not None
        assert [process.name for process in named.processes] == ["mongodb", "rabbitmq", *SERVICES]


def test_the_broker_is_replaced_when_the_rights_of_its_users_change(services: dict[str, Any]) -> None:
    rights = definitions(VIRTUAL_HOST, dict.fromkeys(RIGHTS, ""))
    told = json.dumps([rights["permissions"], rights["topic_permissions"]])
    assert services["rabbitmq"]["labels"] == {"ordersaga.broker-rights": hashlib.sha256(told.encode()).hexdigest()[:16]}


def test_no_password_is_written_down_and_each_container_mounts_its_own_secrets_only(services: dict[str, Any]) -> None:
    text = COMPOSE_FILE.read_text()
    assert not re.search(r"(amqp|mongodb)://[^@\s]*@", text)
    assert not re.search(r"PASSWORD:-", text)
    for name, service in services.items():
        mounted = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        own = {f"of-{'commands' if name == 'topology' else name}"}
        everything = {"credentials": mounted, "database": {"secrets"}}.get(name, set())
        kept = {"keys", "mongo-config", *(volume for volume in mounted if volume.endswith("-data"))}
        configuration = {volume for volume in mounted if volume.startswith("./deploy/")}
        assert mounted - kept - configuration - own <= everything, name


MONITORING = {"prometheus": ["edge", "internal"], "alertmanager": ["edge"], "grafana": ["edge"]}
"""What watches the stack, and its networks; the exporter publishes no port."""


def test_what_watches_the_stack_runs_for_its_profile_alone_and_is_confined(services: dict[str, Any]) -> None:
    watching = {name: service for name, service in services.items() if service.get("profiles") == ["monitoring"]}
    assert {name: one["networks"] for name, one in watching.items()} == MONITORING | {"mongodb-exporter": ["internal"]}
    for name, service in watching.items():
        assert "cap_add" not in service, name
        assert service["read_only"], name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert ("ports" in service) == (name in MONITORING), name
        assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-(\d+)\}:\1", port) for port in service.get("ports", ())), (
            name
        )
        assert "build" in service or re.search(r"_IMAGE:-[^:}]+:v?\d+\.\d+\.\d+\}$", service["image"]), name


def test_each_has_its_own_secrets_and_prometheus_reads_what_is_there(services: dict[str, Any]) -> None:
    """The files that create_secrets.py writes, where each reads them."""
    grafana = services["grafana"]["environment"]
    files = {name: value for name, value in grafana.items() if name.endswith("__FILE")}
    assert files == {
        "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/ordersaga/admin-password",
        "GF_SECURITY_SECRET_KEY__FILE": "/run/ordersaga/secret-key",
    }
    assert "PASSWORD" not in "".join(grafana.keys() - files.keys())
    given = {volume.partition(":")[2] for volume in services["credentials"]["volumes"]}
    for name in ("prometheus", "mongodb-exporter", "grafana"):
        assert f"of-{name}:/run/ordersaga:ro" in services[name]["volumes"]
        assert f"/of/{name}" in given
    assert "$(cat /run/ordersaga/mongodb-urls)" in (ROOT / "deploy/mongodb-exporter/Dockerfile").read_text()

    configured = yaml.safe_load((ROOT / "deploy/prometheus/prometheus-compose.yml").read_text())
    own, mongodb, rabbitmq = configured["scrape_configs"]
    assert own["authorization"] == {"credentials_file": "/run/ordersaga/api-key"}
    assert mongodb["static_configs"] == [{"targets": ["mongodb-exporter:9216"]}]
    [alertmanager] = configured["alerting"]["alertmanagers"][0]["dns_sd_configs"]
    assert services["alertmanager"]["ports"][0].endswith(f":{alertmanager['port']}")
    overlay = compose_services("docker-compose.cluster.yml")
    for volumes, nodes in ((services["prometheus"]["volumes"], 1), (overlay["prometheus"]["volumes"], 3)):
        [mounted] = [
            volume for volume in volumes if volume.endswith(f":{rabbitmq['file_sd_configs'][0]['files'][0]}:ro")
        ]
        [group] = yaml.safe_load((ROOT / mounted.partition(":")[0]).read_text())
        names = [name for name in (*services, *overlay) if re.fullmatch(r"rabbitmq(-\d)?", name)]
        assert group["targets"] == [f"{name}:15692" for name in dict.fromkeys(names)][:nodes]


def test_every_container_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["pids_limit"] > 0, name
        assert service["mem_limit"], name
        assert service.get("read_only") or name in ("mongo", "rabbitmq"), name
        assert "ports" not in service or "edge" in service["networks"], name
    for server in ("mongo", "rabbitmq"):
        assert services[server]["networks"] == ["internal"]


def _interpolated(value: str) -> str:
    """Return the value as Compose passes it on where no variable is set."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", value)


def test_the_image_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_started_as_up_starts_it(name: str, services: dict[str, Any]) -> None:
    service = services[name]
    assert service["command"] == ["python", "-m", PROCESSES[name].package]
    assert service["environment"]["ORDERSAGA_HTTP_PORT"] == str(PROCESSES[name].port)
    assert service["ports"] == [f"127.0.0.1:${{{name.upper()}_PORT:-{PROCESSES[name].port}}}:{PROCESSES[name].port}"]


def test_grpc_is_switched_on_by_a_file_of_its_own(services: dict[str, Any]) -> None:
    assert "ORDERSAGA_GRPC_PORT" not in services["order"]["environment"]
    overlay = yaml.safe_load((COMPOSE_FILE.parent / "deploy/grpc/docker-compose.grpc.yml").read_text())
    order = overlay["services"]["order"]
    assert order["environment"] == {"ORDERSAGA_GRPC_PORT": str(GRPC_PORT)}
    assert order["ports"] == [f"127.0.0.1:${{ORDER_GRPC_PORT:-{GRPC_PORT}}}:{GRPC_PORT}"]


def test_each_process_answers_to_the_names_by_which_containers_address_it(services: dict[str, Any]) -> None:
    scraped = yaml.safe_load((COMPOSE_FILE.parent / "deploy/prometheus/prometheus-compose.yml").read_text())
    [job] = [job for job in scraped["scrape_configs"] if job["job_name"] == "ordersaga"]
    discovered = [name for one in job["dns_sd_configs"] for name in one["names"]]
    urls = [url for name, url in services["console"]["environment"].items() if name.endswith("_URL")]
    hosts = [urlsplit(url).hostname for url in urls if url and url.startswith("http://")]
    hosts += discovered
    assert len(hosts) >= 9
    for name in (*PROCESSES, "simulator"):
        written = services[name]["environment"]["ORDERSAGA_HTTP_NAMES"].replace("${ORDERSAGA_HTTP_NAMES:-}", "")
        names = ServiceSettings(http_names=written).known_names
        assert {*hosts, "simulator"} <= set(names)


def test_the_simulator_is_started_only_for_its_profile_and_knows_no_server_of_the_stack(
    services: dict[str, Any],
) -> None:
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    assert [name for name, ours in profiles.items() if ours != ["monitoring"]] == ["commands", "simulator"]
    simulator = services["simulator"]
    assert simulator["profiles"] == ["simulator"]
    assert not simulator["depends_on"]
    unknown = {"ORDERSAGA_MONGODB_URL_FILE", "ORDERSAGA_AMQP_URL_FILE", "ORDERSAGA_CREDENTIALS_KEY"}
    assert not unknown & simulator["environment"].keys()
    assert "volumes" not in simulator
