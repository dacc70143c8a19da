"""Decides which addresses webhooks are sent to: public ones only, so that nothing inside can be reached. Pure.

The ranges are those that the registries of special-purpose addresses do not call globally reachable, and multicast
(https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry).
Python's own `is_global` differs between its releases, and takes multicast for global.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # inside Azure, where it answers requests of the virtual machines
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_UNICAST_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(each)
    for each in (
        "2001::/23",  # Teredo, among others
        "2001:db8::/32",
        "2002::/16",  # 6to4: the gateway would send on to any IPv4 address
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?\Z){_LABEL}(?:\.{_LABEL})*\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether the address is one of the public internet.

    Of an IPv6 address that stands for an IPv4 address, the latter decides.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _UNICAST_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def is_host_name(host: str) -> bool:
    """Return whether a name could be looked up; underscores are in use, though hosts should have none."""
    return _NAME.fullmatch(host) is not None


def host_objection(host: str, *, allow_private: bool) -> str | None:
    """Return why nothing is sent to the host of a URL, None if its form allows it.

    A name is looked up only when it is connected to, and its addresses are checked then.
    """
    try:
        address = ip_address(host)
    except ValueError:
        # Libraries read 2130706433, 0177.1 and 0x7f.1 as addresses; no name of a host ends in a number.
        last = host.rstrip(".").rpartition(".")[2]
        return "must name a host by its name or its usual address" if _NUMBER.fullmatch(last) else None
    if not allow_private and not is_public(address):
        return f"must be a public address: {host} is not one"
    return None
