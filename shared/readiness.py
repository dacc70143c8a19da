"""The readiness of a service, in one place for /readyz, the gauge `ordersaga_ready` and the refusal of requests.

What the process itself knows, such as the state of its consumer, is read on demand. MongoDB is pinged every second.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import pymongo
import structlog
from prometheus_client import Gauge

from shared.background import run_periodically
from shared.database import Database, first_line

CHECK_INTERVAL_SECONDS = 1.0
"""From the start of one check to the start of the next, which follows at once after a longer check."""
CHECK_TIMEOUT_SECONDS = 2.0
DRIVER_TIMEOUT_SECONDS = 1.5
OUTDATED_AFTER_SECONDS = 5.0
"""The age from which a result is ignored: /readyz checks again, and no request is refused because of it."""
FAILED_CHECKS = 2
"""The failures in a row until requests are refused: a single one may be a connection that an election closed."""

MONGODB = "mongodb"

HealthCheck = Callable[[], str | None]
"""Returns the problem in a few words, or None. Must be cheap, because every scrape calls it."""

_log = structlog.get_logger(__name__)
READY = Gauge(
    "ordersaga_ready",
    "1 while the service can use a dependency, or a part of it works, as in /readyz",
    ["service", "dependency"],
)


class ServerCheck:
    """Checks periodically that a server answers, and keeps the result.

    `interval` and `timeout` are in seconds; `server` is its name in the log.
    """

    def __init__(
        self,
        server: str,
        ping: Callable[[], Awaitable[object]],
        *,
        interval: float = CHECK_INTERVAL_SECONDS,
        timeout: float = CHECK_TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._ping = ping
        self._interval = interval
        self._timeout = timeout
        self._clock = clock
        self._unhealthy_reason: str | None = "not checked yet"
        self._failures = 0
        self._started = self._finished = float("-inf")

    def unhealthy_reason(self) -> str | None:
        """Return the problem that the last check found, or None."""
        return self._unhealthy_reason

    def is_away(self) -> bool:
        """Return True once FAILED_CHECKS in a row have failed, until one succeeds or the last is outdated."""
        return self._failures >= FAILED_CHECKS and not self._outdated()

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self.check, every=self._until_next, name=f"checking {self._server}")

    async def refresh(self) -> None:
        """Check now if the last result is outdated."""
        if self._outdated():
            await self.check()

    async def check(self) -> None:
        """Check now; errors of the driver are not raised."""
        self._started = self._clock()
        wrong = await self._attempt()
        if wrong and not self._failures:
            _log.warning("server does not answer", server=self._server, error=wrong)
        self._failures = self._failures + 1 if wrong else 0
        self._unhealthy_reason = wrong
        self._finished = self._clock()

    async def _attempt(self) -> str | None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._ping()
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except asyncio.CancelledError:
            # A driver may let its own cancellation escape, which must not end the checks.
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return "the check was cancelled"
        except Exception as error:  # noqa: BLE001 - any error means that the server cannot be used
            return first_line(error)
        return None

    def _until_next(self) -> float:
        return max(0.0, self._started + self._interval - self._clock())

    def _outdated(self) -> bool:
        return self._clock() - self._finished > OUTDATED_AFTER_SECONDS


class Readiness:
    """The checks that must pass before a service is ready, by name: MongoDB and the `health_checks`."""

    def __init__(self, service: str, database: Database, health_checks: Mapping[str, HealthCheck]) -> None:
        self._database = ServerCheck(MONGODB, lambda: _ping(database))
        self._health_checks: dict[str, HealthCheck] = {MONGODB: self._database.unhealthy_reason, **health_checks}
        for name, unhealthy_reason in self._health_checks.items():
            READY.labels(service, name).set_function(_works(unhealthy_reason))

    async def run(self) -> None:
        """Keep the state of MongoDB up to date until cancelled."""
        await self._database.run()

    async def down(self) -> dict[str, str]:
        """Return the problems by the name of the check; empty if the service is ready."""
        await self._database.refresh()
        return {name: wrong for name, unhealthy_reason in self._health_checks.items() if (wrong := unhealthy_reason())}

    def database_is_away(self) -> bool:
        """Return True while requests would wait in vain for MongoDB."""
        return self._database.is_away()


async def _ping(database: Database) -> None:
    # The driver's own limit comes first, because its error names the reason, such as a certificate.
    with pymongo.timeout(DRIVER_TIMEOUT_SECONDS):
        await database.command("ping")


def _works(unhealthy_reason: HealthCheck) -> Callable[[], float]:
    return lambda: float(unhealthy_reason() is None)
