"""The readiness of a service, in one place for /readyz, the gauge `ordersaga_ready` and the refusal of requests.

What the process itself knows, such as the state of its consumer, is read on demand. MongoDB is pinged every second.

A service that was ready is degraded while something does not work: an election or a reconnection ends by itself, and
if all processes were unready meanwhile, a load balancer would have none left. It is unready once that lasts.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import pymongo
import structlog
from prometheus_client import Gauge

from shared.background import run_periodically
from shared.clock import utc_now
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
    "1 while the service can use a dependency, or a part of it works; 0 also while /readyz still says degraded",
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


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that does not work: why, and since when, by the wall clock and by the clock that measures."""

    why: str
    since: datetime
    began: float


class Readiness:
    """The checks that must pass before a service is ready, by name: MongoDB and the `health_checks`.

    A service that was ready stays so for `grace` seconds of an outage, unless it is one of the `final` checks, whose
    problems do not pass by themselves. It stays degraded, and ready, for as long as one of the `tolerated` checks
    fails: the rest of it works.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        health_checks: Mapping[str, HealthCheck],
        *,
        grace: float,
        final: Collection[str] = (),
        tolerated: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = ServerCheck(MONGODB, lambda: _ping(database))
        self._final = final
        self._tolerated = tolerated
        self._health_checks: dict[str, HealthCheck] = {MONGODB: self._database.unhealthy_reason, **health_checks}
        self._grace = grace
        self._clock = clock
        self._outages: dict[str, Outage] = {}
        self._was_ready = False
        for name, unhealthy_reason in self._health_checks.items():
            READY.labels(service, name).set_function(_works(unhealthy_reason))

    async def run(self) -> None:
        """Keep the state of MongoDB, and since when something does not work, up to date until cancelled."""
        noting = run_periodically(self._note_outages, every=CHECK_INTERVAL_SECONDS, name="noting outages")
        await asyncio.gather(self._database.run(), noting)

    async def unready(self) -> dict[str, str]:
        """Return the problems by the name of the check; empty while the service is ready, or degraded."""
        await self._database.refresh()
        await self._note_outages()
        if self._was_ready and all(self._may_pass(name, each) for name, each in self._outages.items()):
            return {}
        return {name: each.why for name, each in self._outages.items()}

    def _may_pass(self, name: str, outage: Outage) -> bool:
        if name in self._tolerated:
            return True
        return name not in self._final and self._clock() - outage.began < self._grace

    def outages(self) -> Mapping[str, Outage]:
        """Return what does not work at the moment, by the name of the check."""
        return self._outages

    def database_is_away(self) -> bool:
        """Return True while requests would wait in vain for MongoDB."""
        return self._database.is_away()

    async def _note_outages(self) -> None:
        now, before = self._clock(), self._outages
        wrong = {name: why for name, unhealthy_reason in self._health_checks.items() if (why := unhealthy_reason())}
        self._outages = {
            name: replace(before[name], why=why) if name in before else Outage(why, utc_now(), now)
            for name, why in wrong.items()
        }
        self._was_ready = self._was_ready or wrong.keys() <= set(self._tolerated)


async def _ping(database: Database) -> None:
    # The driver's own limit comes first, because its error names the reason, such as a certificate.
    with pymongo.timeout(DRIVER_TIMEOUT_SECONDS):
        await database.command("ping")


def _works(unhealthy_reason: HealthCheck) -> Callable[[], float]:
    return lambda: float(unhealthy_reason() is None)
