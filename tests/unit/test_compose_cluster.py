"""docker-compose.cluster.yml against docker-compose.yml and against the cluster that `ordersaga up` starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.container.initiate_replica_set import has_primary
from operations.stack.layout import CLUSTER_SIZE, numbered
from operations.stack.rabbitmq import advanced_config
from operations.stack.rabbitmq_cluster import ADVANCED_CLUSTER_CONFIGURATION, CLUSTER_CONFIGURATION, NET_TICK_SECONDS
from operations.stack.replica_set import ReplicaSetMember
from tests.support.compose_files import compose_services

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "container"
MEMBERS = [numbered("mongo", number) for number in range(1, CLUSTER_SIZE + 1)]
NODES = [numbered("rabbitmq", number) for number in range(1, CLUSTER_SIZE + 1)]


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return compose_services("docker-compose.yml")


@pytest.fixture(scope="module")
def overlay() -> dict[str, Any]:
    return compose_services("docker-compose.cluster.yml")


def lines(file: str) -> list[str]:
    return [line for line in (CONFIGURATION / file).read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("name", [*MEMBERS[1:], *NODES[1:]])
def test_a_further_server_differs_from_the_first_one_only_in_its_name_and_its_data(
    name: str, base: dict[str, Any], overlay: dict[str, Any]
) -> None:
    first, number = name.split("-")
    expected = {
        **base[first],
        **{key: overlay[first][key] for key in ("command", "entrypoint", "environment") if key in overlay[first]},
    }
    different = {"volumes", "hostname"}
    assert {key: value for key, value in overlay[name].items() if key not in different} == {
        key: value for key, value in expected.items() if key not in different
    }
    assert overlay[name].get("hostname", name) == name
    of_first = [*base[first]["volumes"], *overlay[first].get("volumes", [])]
    own = [
        volume.replace(f"{first}-data-{number}:", f"{first}-data:").replace(f"config-{number}:", "config:")
        for volume in overlay[name]["volumes"]
    ]
    assert set(own) - set(of_first) <= {"./deploy/container/rabbitmq-join.conf:/etc/rabbitmq/conf.d/70-join.conf:ro"}
    assert set(of_first) <= set(own)


def test_every_volume_of_a_server_is_its_own_but_those_with_secrets(overlay: dict[str, Any]) -> None:
    named = [volume.partition(":")[0] for name in (*MEMBERS, *NODES) for volume in overlay[name].get("volumes", ())]
    data = [volume for volume in named if not volume.startswith((".", "of-"))]
    assert sorted(data) == sorted(yaml.safe_load((ROOT / "docker-compose.cluster.yml").read_text())["volumes"])


def test_the_nodes_have_the_settings_of_the_cluster_that_up_starts(overlay: dict[str, Any]) -> None:
    assert lines("rabbitmq-cluster.conf") == list(CLUSTER_CONFIGURATION)
    tools = f"-kernel net_ticktime {NET_TICK_SECONDS}"
    assert {overlay[name]["environment"]["RABBITMQ_CTL_ERL_ARGS"] for name in NODES} == {tools}
    advanced = (CONFIGURATION / "rabbitmq-cluster-advanced.config").read_text().partition("\n")[2]
    assert advanced == advanced_config(ADVANCED_CLUSTER_CONFIGURATION)
    nodes = [line.partition(" = ")[2] for line in lines("rabbitmq-join.conf") if ".nodes." in line]
    assert nodes == [f"rabbit@{node}" for node in NODES]


def test_the_replica_set_has_all_members_and_a_primary_hands_over(overlay: dict[str, Any]) -> None:
    script, _, url = overlay["database"]["command"][2:]
    addresses = ",".join(f"{member}:27017" for member in MEMBERS)
    assert f" rs0 {addresses} " in script
    assert url == f"mongodb://{addresses}/?replicaSet=rs0"
    assert (
        f"shutdownTimeoutMillisForSignaledShutdown={ReplicaSetMember.shutdown_pause_ms}" in overlay["mongo"]["command"]
    )


def test_a_server_that_has_just_been_elected_does_not_take_writes_yet() -> None:
    elected = {"me": "mongo:27017", "primary": "mongo:27017", "isWritablePrimary": False}
    assert not has_primary(elected)
    assert has_primary(elected | {"isWritablePrimary": True})
    assert has_primary(elected | {"primary": "mongo-2:27017"})
    assert not has_primary({"me": "mongo:27017", "isWritablePrimary": False})


def test_what_prepares_the_stack_waits_for_all_servers(base: dict[str, Any], overlay: dict[str, Any]) -> None:
    waited_for = {**base["database"]["depends_on"], **overlay["database"]["depends_on"]}
    waited_for |= {**base["topology"]["depends_on"], **overlay["topology"]["depends_on"]}
    assert waited_for == {name: {"condition": "service_healthy"} for name in (*MEMBERS, *NODES)}
    assert overlay["credentials"]["command"] == [*base["credentials"]["command"], "--cluster"]
