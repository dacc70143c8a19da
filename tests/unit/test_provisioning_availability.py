"""The choice of what to buy: the package, the reason if nothing is available, the address to ask for."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service.availability import find_package, pick_address, unavailable_reason
from provisioning_service.provider import Package

ips = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))


def listed(name: str, package_id: str = "1", status: str = "active", ips: tuple[str, ...] = ("10.0.0.1",)) -> Package:
    return Package(package_id, name, status, len(ips), ips)


NINE, NINETY_ONE, SHORT = listed("103.181.9", "9"), listed("103.181.91", "91"), listed("103.83.x", "83")
ALL = (NINE, NINETY_ONE, SHORT)


@pytest.mark.parametrize(
    ("name", "package_id", "found"),
    [
        ("103.181.91", None, NINETY_ONE),
        ("103.181.9", None, NINE),
        ("103.83", None, SHORT),
        ("103.83.x", None, SHORT),
        ("103.83.*.*", None, SHORT),
        (" 103.181.9. ", None, NINE),
        ("103.181", None, None),
        ("103.181.91.1", None, None),
        ("103.181.9", "91", NINETY_ONE),
        ("no such name", "91", NINETY_ONE),
        ("103.181.9", "no such id", NINE),
        ("no such name", "no such id", None),
    ],
)
def test_a_package_is_found_by_its_id_else_by_its_name(
    name: str, package_id: str | None, found: Package | None
) -> None:
    assert find_package(ALL, name, package_id) is found
    assert find_package(ALL[::-1], name, package_id) is found


def test_an_empty_list_has_no_package() -> None:
    assert find_package((), "103.181.9", "9") is None


@pytest.mark.parametrize(
    ("package", "why"),
    [
        (None, "Package has no available IPs: the provider does not list it"),
        (listed("p", status="disabled"), "Package has no available IPs: it is disabled"),
        (listed("p", status="disabled", ips=()), "Package has no available IPs: it is disabled"),
        (listed("p", ips=()), "Package has no available IPs"),
        (Package("1", "p", "active", 5, ()), "Package has no available IPs"),
        (listed("p"), None),
        (listed("p", status="ACTIVE"), None),
        (Package("1", "p", "active", 0, ("10.0.0.1",)), None),
    ],
)
def test_an_unavailable_package_has_a_reason(package: Package | None, why: str | None) -> None:
    assert unavailable_reason(package) == why


@pytest.mark.parametrize(
    ("free", "earlier", "picked"),
    [
        (["10.0.0.10", "10.0.0.9", "10.0.0.100"], [], "10.0.0.9"),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], ["10.0.0.2", "10.0.0.3"], "10.0.0.3"),
        (["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.3"], "10.0.0.2"),
        (["10.0.0.1"], ["10.0.0.3"], "10.0.0.1"),
        ([], ["10.0.0.3"], None),
        ([], [], None),
    ],
)
def test_the_address_asked_for_last_is_asked_for_again_else_the_lowest(
    free: list[str], earlier: list[str], picked: str | None
) -> None:
    assert pick_address(free, earlier) == picked


@given(st.lists(ips), st.lists(ips))
def test_a_free_address_is_picked_if_there_is_any(free: list[str], earlier: list[str]) -> None:
    picked = pick_address(free, earlier)
    assert (picked is None) == (not free)
    assert picked is None or picked in free
    if not set(earlier) & set(free):
        assert picked == min(free, key=lambda ip: tuple(map(int, ip.split("."))), default=None)
