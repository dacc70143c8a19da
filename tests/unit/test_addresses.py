"""Addresses inside a package: compared by whole octets, never by a prefix of the text."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning_service.addresses import PLACEHOLDERS, is_inside, is_ipv4, package_key

octets = st.integers(0, 255).map(str)
addresses = st.lists(octets, min_size=4, max_size=4).map(".".join)
prefixes = st.lists(octets, min_size=1, max_size=4)
names = st.tuples(prefixes, st.lists(st.sampled_from(PLACEHOLDERS), max_size=2), st.sampled_from(["", ".", " "]))


def name(parts: tuple[list[str], list[str], str]) -> str:
    given_octets, placeholders, end = parts
    return ".".join([*given_octets, *placeholders]) + end


@given(names, addresses)
def test_an_address_is_inside_if_it_starts_with_the_octets_of_the_package(
    parts: tuple[list[str], list[str], str], ip: str
) -> None:
    prefix = parts[0]
    network = ipaddress.ip_network(".".join(prefix + ["0"] * (4 - len(prefix))) + f"/{8 * len(prefix)}")
    assert is_inside(name(parts), ip) == (ipaddress.ip_address(ip) in network)


@given(names, addresses)
def test_every_address_below_a_package_is_inside(parts: tuple[list[str], list[str], str], ip: str) -> None:
    below = [*parts[0], *ip.split(".")][:4]
    assert is_inside(name(parts), ".".join(below))


@given(names)
def test_all_names_of_a_package_have_one_key_which_is_a_name_of_it(parts: tuple[list[str], list[str], str]) -> None:
    key = ".".join(parts[0])
    assert package_key(name(parts)) == key
    assert package_key(key) == key


@pytest.mark.parametrize(
    ("package", "ip", "inside"),
    [
        ("103.181.9", "103.181.9.5", True),
        ("103.181.9", "103.181.91.5", False),
        ("103.181.91", "103.181.9.15", False),
        ("103.83", "103.83.0.255", True),
        ("103.83.x", "103.83.200.1", True),
        ("103.83.X.X", "103.83.200.1", True),
        ("103.83.*", "103.84.200.1", False),
        ("103.83.x", "103.8.3.1", False),
        ("103.181.9.5", "103.181.9.5", True),
        ("103.181.9.5", "103.181.9.50", False),
        ("x", "103.181.9.5", False),
        ("", "103.181.9.5", False),
        (".", "103.181.9.5", False),
        ("103.x.9", "103.181.9.5", False),
        ("103.181.9.5.6", "103.181.9.5", False),
        ("103.181.9", "103.181.9.5.6", False),
        ("103.181.9", "103.181.9.256", False),
        ("103.181.9", "103.181.9", False),
        ("103.181.9", "103.181.9.5\n", False),
    ],
)
def test_whole_octets_decide(package: str, ip: str, inside: bool) -> None:
    assert is_inside(package, ip) == inside


@given(st.text(alphabet="0123456789. :xabc/\n٣", max_size=20) | addresses)
def test_only_four_plain_octets_are_an_ipv4(text: str) -> None:
    parts = text.split(".")
    plain = len(parts) == 4 and all(part in {str(number) for number in range(256)} for part in parts)
    assert is_ipv4(text) == plain
