"""The choice of what to buy: the package, the reason if nothing is available, the address to ask for. Pure."""

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address

from provisioning_service.addresses import package_key
from provisioning_service.lifecycle import NO_ADDRESS
from provisioning_service.provider import Package


def find_package(packages: Sequence[Package], name: str, package_id: str | None) -> Package | None:
    """Find the package by the provider's id if the order has one, else by its name."""
    for package in packages:
        if package_id is not None and package.package_id == package_id:
            return package
    return next((package for package in packages if package_key(package.name) == package_key(name)), None)


def unavailable_reason(package: Package | None, disabled: str | None = None) -> str | None:
    """Return the reason why nothing can be bought from the package, or None; `disabled` is an operator's reason."""
    if disabled is not None:
        return disabled
    if package is None:
        return f"{NO_ADDRESS}: the provider does not list it"
    if not package.active:
        return f"{NO_ADDRESS}: it is {package.status}"
    return None if package.ips else NO_ADDRESS


def pick_address(free: Collection[str], earlier: Sequence[str]) -> str | None:
    """Choose the address to ask for, None if none is free.

    Prefer the one asked for last if it is still free, else the lowest. The provider can sell an address only once, so
    asking for the same one is safe even if an earlier request still arrives.
    """
    for ip in reversed(earlier):
        if ip in free:
            return ip
    return min(free, key=IPv4Address, default=None)
