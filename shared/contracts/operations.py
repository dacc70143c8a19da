"""The notices that any consumer sends to operations."""

from typing import Annotated, ClassVar

from pydantic import Field

from shared.contracts.base import Message

LetterId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""The id of a dead letter's record."""


class DeadLetterHandled(Message):
    """A replayed dead letter was handled; `message_id` identifies the replay."""

    routing_key: ClassVar[str] = "dead_letter.handled"

    letter_id: LetterId
    message_id: LetterId

    @property
    def correlation_id(self) -> str:
        """The letter's id, because its message may be about anything."""
        return self.letter_id
