"""The control API of the simulator, for tests: packages, faults and purchases. It needs no authentication."""

from collections import Counter
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Response
from pydantic import AfterValidator, FailFast, Field, field_validator

from provisioning_service.addresses import is_ipv4
from provisioning_service.simulator.state import BuyFaults, SimulatedPackage, SimulatorState, StatusFaults
from shared.clock import to_rfc3339
from shared.contracts.base import Count, Name
from shared.http import Body, View, json_response, new_router

_log = structlog.get_logger(__name__)

Times = Annotated[int, Field(ge=0, le=1_000_000)]
Seconds = Annotated[float, Field(ge=0, le=3600)]


def _ipv4(text: str) -> str:
    if not is_ipv4(text):
        raise ValueError("an IPv4 address is allowed")
    return text


class PackageBody(Body):
    """One package; all its addresses are free."""

    id: Name | Count
    name: Name
    ips: Annotated[list[Annotated[str, AfterValidator(_ipv4)]], FailFast(), Field(max_length=65_536)]
    status: Name = "active"


class PackagesBody(Body):
    """All that is for sale from now on."""

    packages: Annotated[list[PackageBody], FailFast(), Field(max_length=10_000)]

    @field_validator("packages")
    @classmethod
    def _unique(cls, packages: list[PackageBody]) -> list[PackageBody]:
        names = [package.name for package in packages]
        ips = [ip for package in packages for ip in package.ips]
        for kind, values in (("package", names), ("address", ips)):
            most = Counter(values).most_common(1)
            if most and most[0][1] > 1:
                raise ValueError(f"the {kind} {most[0][0]} is listed twice")
        return packages


class BuyFaultsBody(Body):
    """What goes wrong with calls to buy; a fault that is not named is none."""

    fail_next: Times = 0
    delay_seconds: Seconds = 0
    wrong_ip_next: Times = 0
    lose_answer_next: Times = 0


class StatusFaultsBody(Body):
    """What goes wrong with calls to status; a fault that is not named is none."""

    fail_next: Times = 0
    delay_seconds: Seconds = 0


class FaultsBody(Body):
    """Each group that is given replaces all that was set for it before; one that is absent stays as it is."""

    buy: BuyFaultsBody | None = None
    status: StatusFaultsBody | None = None


class PurchaseView(View):
    """A sale; `package` is null where the address is outside of all packages."""

    ip: str
    package: str | None
    ram: float | None
    at: str


def create_router(state: SimulatorState) -> APIRouter:
    """Build the routes."""
    router = new_router("control")

    @router.post("/_control/packages")
    async def set_packages(body: PackagesBody) -> Response:
        """Replace all packages; answers those that are for sale now. Purchases are kept."""
        state.replace_packages([SimulatedPackage(p.id, p.name, tuple(p.ips), p.status) for p in body.packages])
        _log.info("packages set", packages=[f"{p.name} ({len(p.ips)}, {p.status})" for p in body.packages])
        return json_response({"packages": [_show(package) for package in state.packages]})

    @router.post("/_control/faults")
    async def set_faults(body: FaultsBody) -> Response:
        """Set what goes wrong; answers what is still to go wrong now."""
        if body.buy is not None:
            state.buy_faults = BuyFaults(**body.buy.model_dump())
        if body.status is not None:
            state.status_faults = StatusFaults(**body.status.model_dump())
        faults = _show_faults(state)
        _log.info("faults set", **faults)
        return json_response(faults)

    @router.get("/_control/purchases", response_model=list[PurchaseView])
    async def list_purchases() -> Response:
        """All that was sold, in the order in which it was."""
        return json_response(
            [{"ip": p.ip, "package": p.package, "ram": p.ram, "at": to_rfc3339(p.at)} for p in state.purchases]
        )

    return router


def _show(package: SimulatedPackage) -> dict[str, Any]:
    return {"id": package.package_id, "name": package.name, "ips": package.ips, "status": package.status}


def _show_faults(state: SimulatorState) -> dict[str, Any]:
    buy, status = state.buy_faults, state.status_faults
    return {
        "buy": {
            "failNext": buy.fail_next,
            "delaySeconds": buy.delay_seconds,
            "wrongIpNext": buy.wrong_ip_next,
            "loseAnswerNext": buy.lose_answer_next,
        },
        "status": {"failNext": status.fail_next, "delaySeconds": status.delay_seconds},
    }
