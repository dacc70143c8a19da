"""Records that replayed letters were handled, as the consumers report it."""

from collections.abc import Sequence

from operations.dead_letters.records import LetterRecords
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import DeadLetterHandled, Message


def handlers(letters: LetterRecords, clock: Clock) -> Handlers:
    """Return the handlers of the inbox of operations."""

    async def record_handled(notices: Sequence[DeadLetterHandled]) -> Sequence[Message]:
        await letters.record_handled(notices, clock())
        return ()

    return {DeadLetterHandled: record_handled}
