"""IPv4 addresses and the packages that contain them, compared by whole octets. Pure.

A package is named by the first octets of its addresses, with or without a placeholder for the rest: "103.83" and
"103.83.x" contain 103.83.*.*; "103.181.9" does not contain 103.181.91.5.
"""

from ipaddress import AddressValueError, IPv4Address

PLACEHOLDERS = ("x", "X", "*")


def package_key(package: str) -> str:
    """Return the canonical name of a package, the key of its lock: the octets without placeholders."""
    octets = [octet.strip() for octet in package.split(".")]
    while len(octets) > 1 and octets[-1] in ("", *PLACEHOLDERS):
        octets.pop()
    return ".".join(octets)


def is_ipv4(text: str) -> bool:
    """Return whether the text is exactly one IPv4 address in dotted decimal form."""
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


def is_inside(package: str, ip: str) -> bool:
    """Return whether the text is an IPv4 address inside the package."""
    octets = package_key(package).split(".")
    return is_ipv4(ip) and ip.split(".")[: len(octets)] == octets
