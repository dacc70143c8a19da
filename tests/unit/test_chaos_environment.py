"""Faults of network, disks and clocks: why a machine cannot have them, and what a run needs for them."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chaos import clocks, disks, network
from chaos.catalogue import catalogue, choose, needs_namespaces
from chaos.clock_faults import has_clock_faults
from chaos.disk_faults import servers_on_small_disks
from chaos.stack import FOLLOWS_WITHIN, not_following
from tests.support.commands import run_command

KINDS = ("node-parted", "service-off-broker", "database-disk-full", "broker-disk-low", "disk-slow", "clock-jumped")
ON_A_CLUSTER = catalogue(cluster=True)


def missing() -> dict[str, str | None]:
    return {fault.name: fault.missing() for fault in choose(ON_A_CLUSTER, ",".join(KINDS))}


def test_without_root_these_faults_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    reasons = missing()
    assert set(reasons) == set(KINDS)
    assert all("root" in str(why) or "apt-get install" in str(why) for why in reasons.values()), reasons


def test_without_a_program_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(network, "SYSTEM_PATH", "/nowhere")
    monkeypatch.setattr(clocks, "DIRECTORIES", ())
    reasons = missing()
    assert reasons["node-parted"] == "needs iptables-restore (apt-get install iptables)"
    assert reasons["disk-slow"] == "needs strace (apt-get install strace)"
    assert reasons["clock-jumped"] == "needs libfaketime (apt-get install libfaketime)"


def test_faults_of_the_machines_network_and_mounts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "a network and mounts of its own" in str(missing()["database-disk-full"])


async def test_a_run_of_which_no_fault_is_possible_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, _, errors = await run_command("chaos", "--only", "database-disk-full", environment={"COLUMNS": "200"})
    assert status == 2
    assert "the disk of mongodb full: needs Linux and root" in errors


@pytest.mark.parametrize(
    ("names", "namespaces", "clock", "servers"),
    [
        ("order-killed,disk-slow", False, False, []),
        ("order-killed,member-parted", True, False, []),
        ("clock-jumped", True, True, []),
        ("broker-disk-low,database-disk-full", True, False, ["mongodb-3", "rabbitmq-3"]),
    ],
)
def test_a_run_has_only_what_its_faults_need(names: str, namespaces: bool, clock: bool, servers: list[str]) -> None:
    faults = choose(ON_A_CLUSTER, names)
    assert needs_namespaces(faults) == namespaces
    assert has_clock_faults(faults) == clock
    assert sorted(servers_on_small_disks(faults)) == servers


def test_only_the_last_servers_of_a_cluster_have_small_disks() -> None:
    assert sorted(servers_on_small_disks(catalogue(cluster=False))) == ["mongodb", "rabbitmq"]
    assert disks.BELOW_ALARM < 50_000_000, "RabbitMQ's default limit"


NOW = datetime(2026, 11, 30, 4, 0, tzinfo=UTC)
PRIMARY, FOLLOWER = ("PRIMARY", timedelta(0)), ("SECONDARY", timedelta(seconds=11))


def status(*members: tuple[str, timedelta]) -> dict[str, Any]:
    described = [
        {"name": str(number), "stateStr": state, "optimeDate": NOW - behind}
        for number, (state, behind) in enumerate(members)
    ]
    return {"date": NOW, "members": described}


@pytest.mark.parametrize(
    ("members", "astray"),
    [
        ([FOLLOWER, PRIMARY, FOLLOWER], []),
        ([PRIMARY, ("SECONDARY", FOLLOWS_WITHIN), FOLLOWER], ["1"]),
        ([PRIMARY, FOLLOWER, ("ROLLBACK", timedelta(0))], ["2"]),
        ([("(not reachable/healthy)", timedelta(0)), PRIMARY, FOLLOWER], ["0"]),
        ([FOLLOWER, FOLLOWER, FOLLOWER], ["0", "1", "2"]),
    ],
)
def test_no_member_is_hit_while_another_does_not_follow(
    members: list[tuple[str, timedelta]], astray: list[str]
) -> None:
    assert not_following(status(*members)) == astray
