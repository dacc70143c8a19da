"""The decisions of the simulated provider: its sales and its faults."""

from datetime import UTC, datetime
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service.simulator.state import BuyFaults, SimulatedPackage, SimulatorState, SoldOutError, StatusFaults

NOW = datetime(2026, 1, 31, tzinfo=UTC)
NINE = SimulatedPackage("9", "103.181.9", ("103.181.9.1", "103.181.9.2"))
NINETY_ONE = SimulatedPackage("91", "103.181.91", ("103.181.91.5",))
CLOSED = SimulatedPackage("83", "103.83.x", ("103.83.4.1",), status="inactive")


@pytest.fixture
def state() -> SimulatorState:
    passwords = count(1)
    return SimulatorState((NINE, CLOSED, NINETY_ONE), lambda: f"password-{next(passwords)}")


def free(state: SimulatorState) -> dict[str, tuple[str, ...]]:
    return {package.name: ips for package, ips in state.stock()}


def test_the_address_that_is_asked_for_is_sold_if_it_is_free(state: SimulatorState) -> None:
    assert state.sell("103.181.9.2", 4096, NOW).ip == "103.181.9.2"
    assert free(state)["103.181.9"] == ("103.181.9.1",)


def test_a_package_may_be_asked_for_by_its_name(state: SimulatorState) -> None:
    assert state.sell("103.181.91", None, NOW).ip == "103.181.91.5"


def test_it_falls_back_silently_to_the_package_and_then_to_another_active_one(state: SimulatorState) -> None:
    sold = [state.sell("103.181.9.2", None, NOW) for _ in range(3)]
    assert [(p.ip, p.package) for p in sold] == [
        ("103.181.9.2", "103.181.9"),
        ("103.181.9.1", "103.181.9"),
        ("103.181.91.5", "103.181.91"),
    ]
    with pytest.raises(SoldOutError):  # what is left is not active
        state.sell("103.181.9.2", None, NOW)
    assert state.purchases == sold


def test_an_inactive_package_sells_nothing(state: SimulatorState) -> None:
    assert state.sell("103.83.4.1", None, NOW).package == "103.181.9"
    assert free(state)["103.83.x"] == ("103.83.4.1",)


def test_a_wrong_address_belongs_to_another_package_or_to_none(state: SimulatorState) -> None:
    assert state.sell("103.181.9.1", None, NOW, wrong_ip=True).package == "103.181.91"
    outside = [state.sell("103.181.9.1", None, NOW, wrong_ip=True) for _ in range(2)]
    assert [purchase.package for purchase in outside] == [None, None]
    assert len({purchase.ip for purchase in outside}) == 2
    assert free(state)["103.181.9"] == NINE.ips
    assert state.server(outside[0].ip) is not None


def test_every_sold_server_has_its_own_password(state: SimulatorState) -> None:
    ips = [state.sell("103.181.9", None, NOW).ip for _ in range(2)]
    servers = [state.server(ip) for ip in ips]
    assert [server.password for server in servers if server] == ["password-1", "password-2"]
    assert "password" not in repr(servers)
    assert state.server("103.181.91.5") is None


def test_new_packages_replace_all_and_their_addresses_are_free_again(state: SimulatorState) -> None:
    before = [state.sell("103.181.9.1", None, NOW), state.sell("103.181.91", None, NOW)]
    state.replace_packages([NINE])
    assert free(state) == {"103.181.9": NINE.ips}
    assert state.purchases == before
    assert state.server("103.181.9.1") is None
    assert state.server("103.181.91.5") is not None


def test_each_fault_hits_the_number_of_calls_it_was_set_for(state: SimulatorState) -> None:
    state.buy_faults = BuyFaults(fail_next=1, delay_seconds=2, wrong_ip_next=1, lose_answer_next=2)
    outcomes = [state.next_buy() for _ in range(4)]
    assert [outcome.fails for outcome in outcomes] == [True, False, False, False]
    assert [outcome.wrong_ip for outcome in outcomes] == [False, True, False, False]
    assert [outcome.answer_lost for outcome in outcomes] == [False, True, True, False]
    assert state.buy_faults == BuyFaults(delay_seconds=2)
    state.status_faults = StatusFaults(fail_next=2, delay_seconds=1)
    assert [state.next_status().fails for _ in range(3)] == [True, True, False]
    assert state.status_faults == StatusFaults(fail_next=0, delay_seconds=1)


ips = st.integers(0, 3).flatmap(lambda package: st.integers(1, 3).map(lambda n: f"10.0.{package}.{n}"))


@given(st.lists(st.tuples(ips | st.integers(0, 3).map("10.0.{}".format), st.booleans()), max_size=20))
def test_no_address_is_sold_twice_and_none_is_lost(orders: list[tuple[str, bool]]) -> None:
    packages = [SimulatedPackage(str(n), f"10.0.{n}", tuple(f"10.0.{n}.{m}" for m in range(1, 4))) for n in range(3)]
    state = SimulatorState(packages)
    refused = 0
    for asked, wrong in orders:
        try:
            state.sell(asked, None, NOW, wrong_ip=wrong)
        except SoldOutError:
            refused += 1
    sold = [purchase.ip for purchase in state.purchases]
    assert len(sold) + refused == len(orders)
    assert len(set(sold)) == len(sold)
    inside = {purchase.ip for purchase in state.purchases if purchase.package}
    left = {ip for package in free(state).values() for ip in package}
    assert inside | left == {ip for package in packages for ip in package.ips}
    assert not inside & left
    assert not refused or not left
