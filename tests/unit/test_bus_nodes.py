"""The order in which the addresses of a cluster are tried."""

import socket

import pytest

from shared.bus.amqp import nodes as nodes_module
from shared.bus.amqp.nodes import Nodes

A, B, C = (f"amqp://u:p,w@{host}/v" for host in ("a", "b:5673", "c"))


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of each name."""
    known = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3"]}

    async def resolve(host: str) -> list[str]:
        if host not in known:
            raise socket.gaierror("unknown")
        return known[host]

    monkeypatch.setattr(nodes_module, "resolve", resolve)
    return known


async def one_round(nodes: Nodes) -> list[str]:
    """Return the addresses of a round, as they are shown."""
    found = [str(await nodes.next())]
    while not nodes.is_round_over:
        found.append(str(await nodes.next()))
    return found


async def test_each_round_has_every_address_once() -> None:
    nodes = Nodes(f"{A},{B},{C}")
    for _ in range(20):
        assert sorted(await one_round(nodes)) == ["a:5672 (10.0.0.1)", "b:5673 (10.0.0.2)", "c:5672 (10.0.0.3)"]


async def test_processes_begin_at_different_nodes() -> None:
    firsts = {str(await Nodes(f"{A},{B},{C}").next()) for _ in range(200)}
    assert len(firsts) == 3


async def test_the_address_that_was_used_last_comes_last() -> None:
    nodes = Nodes(f"{A},{B},{C}")
    for _ in range(50):
        used = str(await nodes.next())
        nodes.start_over()
        assert (await one_round(nodes))[-1] == used


async def test_names_are_resolved_again_for_each_round(names: dict[str, list[str]]) -> None:
    nodes = Nodes(A)
    assert (await nodes.next()).is_only
    names["a"] = ["10.0.0.8", "10.0.0.9"]
    assert sorted(await one_round(nodes)) == ["a:5672 (10.0.0.8)", "a:5672 (10.0.0.9)"]


async def test_a_name_that_is_unknown_is_left_to_the_connection_to_report(names: dict[str, list[str]]) -> None:
    del names["b"]
    nodes = Nodes(f"{A},{B}")
    assert sorted(await one_round(nodes)) == ["a:5672 (10.0.0.1)", "b:5673"]


async def test_a_name_that_cannot_be_one_is_left_to_the_connection_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert str(await Nodes(f"amqp://{'a' * 64}/").next()) == f"{'a' * 64}:5672"


async def test_only_one_of_several_addresses_has_to_answer_soon() -> None:
    assert (await Nodes(A).next()).connect_seconds is None
    assert (await Nodes(f"{A},{B}").next()).connect_seconds == nodes_module.CONNECT_SECONDS
