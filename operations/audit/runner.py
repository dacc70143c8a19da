"""Runs audits for the console: on a schedule, and when somebody asks. Only one process audits at a time.

An audit only reads, from short snapshots, and rests as long as each page of orders took: it takes at most half of the
time of one connection, so neither orders nor a backup wait for it.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from pymongo.errors import PyMongoError

from operations.audit.auditing import audit
from operations.audit.runs import INTERRUPTED, NOT_DONE, SCHEDULE, AuditRuns
from operations.errors import CommandError
from shared.background import run_periodically
from shared.bus.failures import traceback_text
from shared.outage_words import in_words

LOOK_SECONDS = 30.0
"""How often the schedule looks whether an audit is due."""

RENEW_SECONDS = 5.0
LONGEST_SECONDS = 6 * 3600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AuditedStack:
    """The servers and the databases that are audited."""

    mongodb_url: str = field(repr=False)
    amqp_url: str = field(repr=False)
    prefix: str


class AuditRunner:
    """Runs audits of one stack, and records their results."""

    def __init__(self, stack: AuditedStack, runs: AuditRuns) -> None:
        self._stack = stack
        self._runs = runs

    async def keep_schedule(self, every: timedelta) -> None:
        """Run an audit whenever one is due, until cancelled; never if `every` is 0."""
        if not every:
            return

        async def run_if_due() -> None:
            if (run_id := await self._runs.begin(SCHEDULE, every=every)) is not None:
                await self.run(run_id)

        await run_periodically(run_if_due, every=min(LOOK_SECONDS, every.total_seconds()), name="the scheduled audit")

    async def run(self, run_id: str) -> None:
        """Run an audit whose record was begun, and record its result; a failure is the result, and not raised."""
        progress = _Progress()
        auditing = asyncio.create_task(self._audit(run_id, progress), name="audit")
        renewing = asyncio.create_task(self._renew(run_id, progress), name="renewal of the audit")
        try:
            await asyncio.wait({auditing, renewing}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            with contextlib.suppress(PyMongoError):
                await self._runs.give_up(run_id, INTERRUPTED, "its process was stopped")
            raise
        finally:
            for task in (auditing, renewing):
                task.cancel()
            ended, _ = await asyncio.gather(auditing, renewing, return_exceptions=True)
            if isinstance(ended, Exception):
                _log.warning("the result of an audit could not be recorded", run=run_id, reason=in_words(ended))

    async def _audit(self, run_id: str, progress: "_Progress") -> None:
        stack, started = self._stack, time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                report = await audit(
                    stack.mongodb_url,
                    stack.amqp_url,
                    stack.prefix,
                    on_progress=progress.add,
                    pace=progress.rest,
                )
            await self._runs.end(run_id, report, time.monotonic() - started, progress.judged)
        except TimeoutError:
            await self._runs.give_up(run_id, NOT_DONE, f"it took longer than {LONGEST_SECONDS / 3600:g} hours")
        except (CommandError, PyMongoError) as error:
            _log.warning("an audit could not be done", run=run_id, reason=in_words(error))
            await self._runs.give_up(run_id, NOT_DONE, in_words(error))
        except Exception as error:  # noqa: BLE001 - a damaged record must not end the schedule
            trace = traceback_text(error)
            _log.error("an audit failed", run=run_id, error=type(error).__name__, exception=trace)
            why = f"{in_words(error)}. The log of the console has the details."
            await self._runs.give_up(run_id, NOT_DONE, why)

    async def _renew(self, run_id: str, progress: "_Progress") -> None:
        """Keep the turn until cancelled; return once another process has it."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with contextlib.suppress(PyMongoError):
                if not await self._runs.renew(run_id, progress.judged):
                    _log.warning("an audit lost its turn", run=run_id)
                    return


class _Progress:
    """Counts the orders judged, and rests after each page for as long as the page took."""

    def __init__(self) -> None:
        self.judged = 0
        self._began = time.monotonic()

    def add(self, judged: int) -> None:
        self.judged += judged

    async def rest(self) -> None:
        await asyncio.sleep(time.monotonic() - self._began)
        self._began = time.monotonic()
