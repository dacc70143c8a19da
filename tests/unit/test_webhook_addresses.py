"""Which addresses webhooks are sent to."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notification_service.addresses import host_objection, is_public

INSIDE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
OUTSIDE = [
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", INSIDE)
def test_nothing_is_sent_inside(address: str) -> None:
    assert not is_public(ip_address(address))
    assert host_objection(address, allow_private=False) is not None
    assert host_objection(address, allow_private=True) is None


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ip_address(address))
    assert host_objection(address, allow_private=False) is None


@given(st.ip_addresses(v=4))
def test_python_calls_every_allowed_address_global(address: IPv4Address) -> None:
    assert address.is_global or not is_public(address)


@given(st.ip_addresses(v=6))
def test_python_calls_every_allowed_ipv6_address_global(address: IPv6Address) -> None:
    assert address.is_global or not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_that_stands_for_an_ipv4_address_is_as_public(address: IPv4Address) -> None:
    for prefix in ("::ffff:", "64:ff9b::"):
        assert is_public(IPv6Address(f"{prefix}{address}")) == is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "010.8.8.8",
        "8.8.8.8.",
        "1.2.3.4.5",
        "256.1.1.1",
        "shop.0x1",
    ],
)
def test_other_spellings_of_addresses_are_refused_everywhere(host: str) -> None:
    assert host_objection(host, allow_private=True) == "must name a host by its name or its usual address"


@pytest.mark.parametrize("host", ["shop.example", "shop1.example2", "a.7f", "0x7f.example", "localhost"])
def test_names_are_checked_when_they_are_connected_to(host: str) -> None:
    assert host_objection(host, allow_private=False) is None
