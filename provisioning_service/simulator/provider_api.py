"""The provider's API of the simulator: its three calls, with their quirks.

The number of free addresses is a string, the key of the username is misspelt, every second answer to `buyvps` is plain
text instead of JSON, and every second answer to `status` is encoded as JSON twice.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Depends, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, Field

from provisioning_service.simulator.server import NoAnswer
from provisioning_service.simulator.settings import SimulatorSettings
from provisioning_service.simulator.state import CallOutcome, SimulatedPackage, SimulatorState, SoldOutError, SoldServer
from shared.clock import Clock
from shared.http import ProblemError, conflict, json_response, new_router, not_found
from shared.openapi import documented

Text = Annotated[str, Field(min_length=1, max_length=128)]

MAX_RAM = 2**31 - 1
"""In MB."""

DELAY_POLL_SECONDS = 0.05
"""The interval at which a delayed call checks whether the delay has changed."""

_log = structlog.get_logger(__name__)


class BuyBody(BaseModel):
    """What to buy: `ip` is an address or a package's name, `ram` in MB."""

    ip: Text
    ram: Annotated[int, Field(ge=0, le=MAX_RAM)] | Annotated[float, Field(ge=0, le=MAX_RAM)] | None = None


class StatusBody(BaseModel):
    """Which server is asked about."""

    ip: Text


def create_router(
    state: SimulatorState, settings: SimulatorSettings, clock: Clock, stopping: asyncio.Event
) -> APIRouter:
    """Build the routes; setting `stopping` ends delayed calls without effect and without an answer."""
    router = new_router("provider")
    router.dependencies = [Depends(_authentication(settings))]
    router.responses = documented(401)
    buys, statuses = itertools.count(1), itertools.count(1)

    @router.post("/api/oceansmart/ipstock")
    async def list_provider_packages() -> Response:
        """The packages with their free addresses."""
        return json_response({"packages": [_listed(package, free) for package, free in state.stock()]})

    @router.post("/api/oceansmart/buyvps", responses=documented(409))
    async def buy_server(body: BuyBody) -> Response:
        """Sell a server: after the delay, even if the client has gone away by then."""
        outcome = state.next_buy()
        if not await _arrives("buyvps", outcome, lambda: state.buy_faults.delay_seconds, stopping):
            return NoAnswer()
        try:
            sold = state.sell(body.ip, body.ram, clock(), wrong_ip=outcome.wrong_ip)
        except SoldOutError:
            _log.info("sold out", asked=body.ip)
            raise conflict("No server is available") from None
        _log.info("sold", asked=body.ip, ip=sold.ip, package=sold.package, ram=sold.ram, wrong_ip=outcome.wrong_ip)
        if outcome.answer_lost:
            _log.info("answer lost on purpose", call="buyvps", ip=sold.ip)
            return NoAnswer()
        if next(buys) % 2 == 0:
            return Response(sold.ip, media_type="text/plain")
        return json_response({"message": "VPS created", "ip": sold.ip})

    @router.post("/api/oceansmart/status", responses=documented(404))
    async def get_server_access(body: StatusBody) -> Response:
        """How to get into a server that was sold."""
        outcome = state.next_status()
        if not await _arrives("status", outcome, lambda: state.status_faults.delay_seconds, stopping):
            return NoAnswer()
        server = state.server(body.ip)
        if server is None:
            raise not_found("This server")
        answer = _described(server)
        return json_response(orjson.dumps(answer).decode() if next(statuses) % 2 == 0 else answer)

    return router


def _authentication(settings: SimulatorSettings) -> Any:
    expected = f"{settings.smartvps_username}:{settings.smartvps_password.get_secret_value()}".encode()

    async def authenticate(given: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]) -> None:
        credentials = f"{given.username}:{given.password}".encode() if given else b""
        if not secrets.compare_digest(credentials, expected):
            raise ProblemError(
                HTTPStatus.UNAUTHORIZED,
                "HTTP Basic authentication with the provider's username and password is required",
                headers={"WWW-Authenticate": 'Basic realm="simulator"'},
            )

    return authenticate


async def _arrives(call: str, outcome: CallOutcome, delay: Callable[[], float], stopping: asyncio.Event) -> bool:
    """Wait for the delay of the call; return False if the simulator is stopping. Raise the problem of a set fault.

    A new delay also applies to waiting calls, so that a test can release them.
    """
    arrived = time.monotonic()
    while (left := arrived + delay() - time.monotonic()) > 0 and not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, DELAY_POLL_SECONDS)):
                await stopping.wait()
    if stopping.is_set():
        return False
    if outcome.fails:
        _log.info("failing on purpose", call=call)
        raise ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "This call was set to fail")
    return True


def _listed(package: SimulatedPackage, free: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id": package.package_id,
        "name": package.name,
        "status": package.status,
        "ipv4": str(len(free)),
        "ips": free,
    }


def _described(server: SoldServer) -> dict[str, str]:
    return {
        "IP": server.ip,
        "Usernane": server.username,
        "Password": server.password,
        "OS": server.os,
        "ExpiryDate": server.expires.date().isoformat(),
    }
