"""Replays: letters sent back to the inboxes that they failed in, in pages, at a bounded rate.

A process runs a replay under a lease; when it dies, another one continues. For each page of letters:

    1. claim     dead ──▶ replaying, with a message id made from the ids of replay and letter: no letter twice
    2. publish   with confirms, all letters that the replay has claimed and not noted as sent
    3. note      replaying ──▶ pending, unless the outcome is known already
    4. advance   past the last letter of the page

A process that takes over begins with step 2: claimed letters are sent with their message ids, and the others are found
past the recorded position. So no letter is left out. At most the letters of one page, published but not noted, are sent
twice, with the same message ids.

A replay with a patch edits each letter as it claims it. What the patch makes of a letter follows from these two alone,
and a letter is only claimed as it was read. Letters that the patch leaves as they are stay dead, and are counted by
reason when the position moves past them, so that none is counted twice.

A careful replay goes in steps (see `careful`): at the end of each it waits until all that it has sent is handled, and
it stops by itself if a letter fails again. Where it is in its steps follows from the number of letters sent, so a
process that takes over goes on with the same step.

A stalled process may claim letters after it lost its lease, and even after the replay has ended. If it dies before it
has sent them, the replay is reopened.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import structlog
from pymongo.errors import PyMongoError

from operations.dead_letters.careful import end_of_step, is_end_of_step, reason_to_stop, why_stopped
from operations.dead_letters.filters import Filters, claimable, replayable
from operations.dead_letters.letter import current_body, replay_envelope
from operations.dead_letters.pages import Page, patched_page
from operations.dead_letters.records import LetterRecords
from operations.dead_letters.replays import (
    CANCELLED,
    CANCELLING,
    DONE,
    GOING_ON,
    STOPPED,
    ReplayLeaseLostError,
    ReplayRecords,
    goes_in_steps,
    number_left_out,
    patch_of,
)
from operations.dead_letters.schema import LETTERS
from operations.dead_letters.status import REPLAYING, STATUSES
from shared.background import ErrorLog, run_periodically
from shared.bus import Envelope
from shared.bus.backoff import Backoff
from shared.bus.publisher import Publisher
from shared.clock import utc_now
from shared.database import Collection, Database, Document
from shared.errors import BusUnavailableError
from shared.failpoints import (
    REPLAY_CLAIMED,
    REPLAY_PUBLISHED,
    REPLAY_RECORDED,
    Failpoint,
    nothing_fails,
)

MOST_AT_ONCE = 200
MOST_BYTES_AT_ONCE = 8 * 1024 * 1024
LONGEST_PAUSE_SECONDS = 2.0
"""Between two renewals of the lease."""

OUTCOME_POLL_SECONDS = 0.25
PATIENCE_SECONDS = 300.0
"""How long a careful replay waits for the outcome of a step: longer than all levels of the retry ladder take."""

log = structlog.get_logger(__name__)

Progress = Callable[[Document], None]
"""Receives the replay's record after each step."""


class Replayer:
    """Runs replays; `bus_timeout` (seconds) limits how long it waits for an unavailable broker, None does not.

    `patience` (seconds) limits how long a careful replay waits for the outcome of a step, before it stops.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        *,
        failpoint: Failpoint = nothing_fails,
        bus_timeout: float | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._records = LetterRecords(database)
        self._letters: Collection = database[LETTERS]
        self._replays = ReplayRecords(database)
        self._publisher = publisher
        self._failpoint = failpoint
        self._bus_timeout = bus_timeout
        self._patience = patience

    async def run(self, replay: Document, token: str, on_progress: Progress = lambda _: None) -> Document:
        """Run a replay to its end, under the lease that the token holds; return its record.

        Raises ReplayLeaseLostError, BusUnavailableError after `bus_timeout`, and the driver's errors. The replay
        continues once its lease has expired.
        """
        started, sent_before = time.monotonic(), await self._sent_by(replay)
        sent = await self._publish_claimed(replay, token)
        while True:
            replay = await self._replays.advance(replay["_id"], token, {"published": sent_before + sent})
            on_progress(replay)
            page = Page() if replay["status"] == CANCELLING else await self._next(replay)
            if goes_in_steps(replay):
                wait = page.is_empty or is_end_of_step(replay["published"], replay["rate"])
                replay = await self._check_step(replay, token, on_progress, wait=wait)
                if wait and replay["status"] in GOING_ON:
                    page = await self._next(replay)  # its letters may have changed in that time
                # What waiting took is not made up for by going faster.
                started = max(started, time.monotonic() - sent / replay["rate"])
            if page.is_empty or replay["status"] not in GOING_ON:
                return await self._finish(replay, token)
            claimed_all = await self._records.claim(page.letters, replay, page.edits)
            self._failpoint(REPLAY_CLAIMED)
            sent += await self._publish_claimed(replay, token)
            self._failpoint(REPLAY_RECORDED)
            progress = {"published": sent_before + sent}
            # A letter that has changed since its patch was applied is looked at again.
            if claimed_all or page.edits is None:
                progress |= page.progress(replay)
            on_progress(await self._replays.advance(replay["_id"], token, progress))
            await self._keep_rate(replay, token, started, sent)

    async def _sent_by(self, replay: Document) -> int:
        """Count the letters that the replay has sent; the count in its record may be behind."""
        own = {"replay": replay["_id"], "unsent": {"$ne": True}}
        claimed = {"status": REPLAYING, "claimedBy": replay["_id"]}
        # Every status is named because the index begins with the status.
        asked = {"status": {"$in": list(STATUSES)}, "replays": {"$elemMatch": own}, "$nor": [claimed]}
        return await self._letters.count_documents(asked)

    async def _next(self, replay: Document) -> "Page":
        """Return the next page of letters, the oldest failure first."""
        asked = replayable(Filters.from_document(replay["filters"])) | {"replays.replay": {"$ne": replay["_id"]}}
        asked["lastFailedAt"] = asked.get("lastFailedAt", {}) | {"$lte": replay["through"]}
        conditions = [*asked.get("$and", []), claimable(replay)]
        if replay["behind"] is not None:
            at, last = replay["behind"]
            conditions.append(
                {"lastFailedAt": {"$gte": at}, "$or": [{"lastFailedAt": {"$gt": at}}, {"_id": {"$gt": last}}]}
            )
        asked["$and"] = conditions
        most = min(MOST_AT_ONCE, max(1, int(replay["rate"] / 2)))
        if goes_in_steps(replay):
            most = min(most, end_of_step(replay["published"], replay["rate"]) - replay["published"])
        patch = patch_of(replay)
        fields = {"lastFailedAt": True, "size": True, "fingerprint": True}
        limit = most if patch is None else MOST_AT_ONCE
        cursor = self._letters.find(asked, fields, sort=[("lastFailedAt", 1), ("_id", 1)], limit=limit)
        found = _bounded(await cursor.to_list(None))
        if patch is None:
            return Page(found, found)
        return patched_page(await self._records.without_big_bodies([each["_id"] for each in found]), patch, most)

    async def _check_step(self, replay: Document, token: str, on_progress: Progress, *, wait: bool) -> Document:
        """Stop a careful replay if a letter of it failed again; return its record.

        With `wait`, wait until all that it has sent is handled; without an outcome for too long, it is stopped too.
        """
        replay_id, since = replay["_id"], time.monotonic()
        while goes_in_steps(replay):
            # In this order: a letter that fails between the two reads must not pass for handled.
            awaited = await self._records.awaited_in(replay_id) if wait else None
            failed = await self._records.failed_in(replay_id)
            if awaited is None and failed is None:
                break
            if (culprit := failed or (awaited if time.monotonic() - since > self._patience else None)) is not None:
                stopped = {"status": STOPPED, "doneAt": utc_now(), "stopped": reason_to_stop(culprit, replay_id)}
                return await self._replays.advance(replay_id, token, stopped)
            await asyncio.sleep(OUTCOME_POLL_SECONDS)
            replay = await self._replays.advance(replay_id, token, {})
            on_progress(replay)
        return replay

    async def _publish_claimed(self, replay: Document, token: str) -> int:
        """Send the letters that are claimed and not noted as sent; return how many were sent."""
        sent = 0
        claimed = {"status": REPLAYING, "claimedBy": replay["_id"]}
        while letters := _bounded(await self._letters.find(claimed, limit=MOST_AT_ONCE).to_list(None)):
            envelopes, unsendable = await self._envelopes(letters)
            unsendable |= await self._publish_all(envelopes, replay, token)
            self._failpoint(REPLAY_PUBLISHED)
            for letter_id, error in unsendable.items():
                log.warning("letter cannot be sent", letter=letter_id, error=str(error)[:200])
            await self._records.record_sent(letters, unsendable)
            sent += len(letters) - len(unsendable)
        return sent

    async def _envelopes(self, letters: Sequence[Document]) -> tuple[dict[str, Envelope], dict[str, Exception]]:
        """Return the messages of letters by letter id, and the errors of letters that have none."""
        envelopes: dict[str, Envelope] = {}
        errors: dict[str, Exception] = {}
        for letter in letters:
            try:
                await self._records.with_body(letter)
                envelopes[letter["_id"]] = replay_envelope(letter, letter["lastReplay"], current_body(letter))
            except PyMongoError:
                raise
            except Exception as error:  # noqa: BLE001 - one bad letter must not block the others
                errors[letter["_id"]] = error
        return envelopes, errors

    async def _publish_all(self, envelopes: dict[str, Envelope], replay: Document, token: str) -> dict[str, Exception]:
        """Publish all messages that can be sent; return the errors of the others by letter id."""
        # A message that cannot be encoded fails the whole batch, and the error does not say which one it is.
        if await self._publish(list(envelopes.values()), replay, token) is None:
            return {}
        alone = {letter_id: await self._publish([one], replay, token) for letter_id, one in envelopes.items()}
        return {letter_id: error for letter_id, error in alone.items() if error is not None}

    async def _publish(self, envelopes: Sequence[Envelope], replay: Document, token: str) -> Exception | None:
        """Publish, waiting for the broker if it is unavailable; return the error of messages that cannot be sent."""
        backoff, since = Backoff(), time.monotonic()
        while True:
            try:
                await self._publisher.publish(envelopes)
            except BusUnavailableError as error:
                if self._bus_timeout is not None and time.monotonic() - since > self._bus_timeout:
                    raise
                log.warning(
                    "replay waits for the broker", replay=replay["_id"], letters=len(envelopes), error=str(error)
                )
                await asyncio.sleep(min(backoff.next(), LONGEST_PAUSE_SECONDS))
                await self._replays.advance(replay["_id"], token, {})
            except Exception as error:  # noqa: BLE001 - recorded with the letter
                return error
            else:
                return None

    async def _keep_rate(self, replay: Document, token: str, started: float, sent: int) -> None:
        """Pause until no more than the rate has been sent since the start."""
        while (left := started + sent / replay["rate"] - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LONGEST_PAUSE_SECONDS))
            if left > LONGEST_PAUSE_SECONDS:
                await self._replays.advance(replay["_id"], token, {})

    async def _finish(self, replay: Document, token: str) -> Document:
        if replay["status"] == STOPPED:
            log.warning("replay stopped", replay=replay["_id"], letters=replay["published"], why=why_stopped(replay))
            return replay
        status = CANCELLED if replay["status"] == CANCELLING else DONE
        done = await self._replays.advance(replay["_id"], token, {"status": status, "doneAt": utc_now()})
        left_out = number_left_out(done)
        log.info("replay ended", replay=done["_id"], status=status, letters=done["published"], left_out=left_out)
        return done


class ReplayWork:
    """Runs new and abandoned replays in the operations process."""

    def __init__(self, database: Database, replayer: Replayer, *, every: float = 1.0) -> None:
        self._replays = ReplayRecords(database)
        self._replayer = replayer
        self._every = every
        self._running: set[asyncio.Task[None]] = set()
        self._errors = ErrorLog("replaying")

    async def run(self) -> None:
        """Run every replay that no process runs, each in a separate task; never returns."""
        try:
            await run_periodically(self._start_next, every=self._every, name="looking for replays")
        finally:
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    async def _start_next(self) -> None:
        token = uuid4().hex
        await self._replays.reopen()
        if (replay := await self._replays.acquire(token)) is not None:
            task = asyncio.create_task(self._run_replay(replay, token), name=f"replay-{replay['_id']}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_replay(self, replay: Document, token: str) -> None:
        try:
            await self._replayer.run(replay, token)
        except ReplayLeaseLostError as error:
            log.warning("replay continues in another process", reason=str(error))
        except Exception as error:  # noqa: BLE001 - another run takes the replay over when its lease has expired
            self._errors.failed(error, replay=replay["_id"])
        else:
            self._errors.succeeded()


def _bounded(letters: Sequence[Document]) -> list[Document]:
    """Return the first letters, at least one, whose bodies fit into memory together."""
    taken: list[Document] = []
    size = 0
    for letter in letters:
        size += letter["size"]
        if taken and size > MOST_BYTES_AT_ONCE:
            break
        taken.append(letter)
    return taken
