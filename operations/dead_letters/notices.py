"""What the consumers say about replayed letters, noted at the letters."""

from collections.abc import Sequence

from operations.dead_letters.records import LetterRecords
from shared.bus import Handlers
from shared.clock import Clock
from shared.contracts import DeadLetterHandled, Message


def handlers(letters: LetterRecords, clock: Clock) -> Handlers:
    """The handlers of the inbox of operations."""

    async def note_handled(notices: Sequence[DeadLetterHandled]) -> Sequence[Message]:
        await letters.handled(notices, clock())
        return ()

    return {DeadLetterHandled: note_handled}
