"""The simulator's application."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from provisioning_service.simulator import control_api, provider_api
from provisioning_service.simulator.server import serving
from provisioning_service.simulator.settings import SimulatorSettings
from provisioning_service.simulator.state import SimulatorState
from shared.clock import utc_now
from shared.http import add_routes, create_app


@asynccontextmanager
async def simulator(settings: SimulatorSettings, listener: socket.socket) -> AsyncIterator[None]:
    """Run a simulator with its own state on the socket; the end of the context ends it and all delayed calls."""
    state = SimulatorState()
    stopping = asyncio.Event()
    async with serving(create_simulator_app(settings, state, stopping), listener):
        try:
            yield
        finally:
            stopping.set()


def create_simulator_app(settings: SimulatorSettings, state: SimulatorState, stopping: asyncio.Event) -> FastAPI:
    """Create the application; calls that are delayed end when `stopping` is set."""
    description = "Sells simulated servers as the SmartVPS provider sells real ones"
    app = create_app("simulator", description, _nothing_is_down, authenticator=None, names=settings.http_names)
    add_routes(app.router, provider_api.create_router(state, settings, utc_now, stopping))
    add_routes(app.router, control_api.create_router(state))
    return app


async def _nothing_is_down() -> dict[str, str]:
    return {}
