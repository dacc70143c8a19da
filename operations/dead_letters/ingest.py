"""Takes dead letters from the broker: a batch is recorded, then acknowledged, so a crash in between loses none.

Every message is recorded, whatever it contains. While MongoDB or RabbitMQ is unavailable, the current batch waits and
the queue keeps the rest.
"""

from collections.abc import Sequence

import structlog

from operations.dead_letters.letter import without_headers
from operations.dead_letters.records import LetterRecords, RecordResult
from shared.bus import Bus, Delivery
from shared.bus.batch_loop import BatchLoop
from shared.bus.failures import traceback_text
from shared.bus.metrics import HANDLED_MESSAGES, PAUSES, type_label
from shared.bus.reading import type_name
from shared.clock import utc_now
from shared.database import translate_error
from shared.errors import TransientError
from shared.failpoints import (
    LETTERS_ACKNOWLEDGED,
    LETTERS_RECORDED,
    LETTERS_TAKEN,
    Failpoint,
    nothing_fails,
)
from shared.topology import DEAD_LETTERS

PREFETCH = 100
"""Unacknowledged letters at once. All are in memory, and a body may have many megabytes."""

BATCH = 50
"""Half of the prefetch: the broker delivers the next batch while this one is recorded."""

STALLED_AFTER_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Ingest(BatchLoop):
    """Records dead letters from a bus that consumes from their queue, until it is stopped."""

    def __init__(self, bus: Bus, records: LetterRecords, *, failpoint: Failpoint = nothing_fails) -> None:
        super().__init__(
            bus, DEAD_LETTERS, batch_limit=BATCH, translate_error=translate_error, stalled_after=STALLED_AFTER_SECONDS
        )
        self._records = records
        self._failpoint = failpoint
        PAUSES.labels(DEAD_LETTERS)

    async def _process(self, deliveries: Sequence[Delivery]) -> None:
        self._failpoint(LETTERS_TAKEN)
        recorded = await self._record(deliveries, deliveries)
        self._failpoint(LETTERS_RECORDED)
        still_ours = self._bus.still_owns(deliveries)
        await self._bus.acknowledge(deliveries)
        self._failpoint(LETTERS_ACKNOWLEDGED)
        if still_ours:
            await self._records.record_acknowledged(recorded)
        for delivery in deliveries:
            HANDLED_MESSAGES.labels(DEAD_LETTERS, type_label(type_name(delivery))).inc()
        log.info(
            "dead letters recorded", new=recorded.new, dead_again=recorded.dead_again, known_already=recorded.known
        )

    async def _record(self, deliveries: Sequence[Delivery], batch: Sequence[Delivery]) -> RecordResult:
        """Record a part of a batch; bisect it for a letter that MongoDB rejects, and record that without headers."""
        try:
            return await self._record_once_available(deliveries, batch)
        except TransientError:
            raise
        except Exception as error:  # noqa: BLE001 - one bad letter must not block the others
            log.error("dead letters rejected by MongoDB", messages=len(deliveries), exception=traceback_text(error))  # noqa: TRY400
            if len(deliveries) == 1:
                return await self._record_once_available([without_headers(deliveries[0])], batch)
            middle = len(deliveries) // 2
            first = await self._record(deliveries[:middle], batch)
            return first + await self._record(deliveries[middle:], batch)

    async def _record_once_available(self, deliveries: Sequence[Delivery], batch: Sequence[Delivery]) -> RecordResult:
        return await self._until_served(lambda: self._records.record(deliveries, utc_now(), self._bus.user), batch)
