"""The entry point of the simulator: `python -m provisioning_service.simulator`; SIGTERM or SIGINT ends it."""

from shared import quick_start  # first, because it makes the other imports quicker

# isort: split
import asyncio
import signal
import socket

import structlog
import uvloop

from provisioning_service.simulator.app import simulator
from provisioning_service.simulator.settings import SimulatorSettings
from shared.errors import StartError
from shared.observability import configure_logging
from shared.services import SIMULATOR
from shared.settings import exit_with, load

_log = structlog.get_logger(__name__)


def main() -> None:
    """Run the simulator; a wrong setting ends the process with one line on stderr."""
    try:
        settings = load(SimulatorSettings)
        configure_logging(SIMULATOR.name, settings.log_level, settings.log_format)
        quick_start.started()
        uvloop.run(_run(settings))
    except StartError as error:
        exit_with(error)


async def _run(settings: SimulatorSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with simulator(settings, _listen(settings)):
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


def _listen(settings: SimulatorSettings) -> socket.socket:
    host, port = settings.http_host, settings.http_port or SIMULATOR.port
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise StartError(f"cannot listen on ORDERSAGA_HTTP_HOST={host} ORDERSAGA_HTTP_PORT={port}: {error}") from None
    _log.info("listening", host=host, port=listener.getsockname()[1])
    return listener


if __name__ == "__main__":
    main()
