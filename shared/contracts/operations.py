"""The notices of consumers: to operations about replays, and to the order service about pauses."""

from typing import Annotated, ClassVar

from pydantic import FailFast, Field

from shared.contracts.base import Message, Moment, WireModel

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


class PauseTimes(WireModel):
    """When the consumption of an inbox was paused; without `ended_at` it lasts until `until`, or until it is ended."""

    since: Moment
    until: Moment | None = None
    ended_at: Moment | None = None


class ConsumerPausesChanged(Message):
    """The consumption of a service's inbox was paused, or resumed. It has all that is known, not only the change.

    So a message that is lost, late or repeated does no harm: the newest `changed_at` counts.
    """

    routing_key: ClassVar[str] = "consumer.pauses_changed"

    service: Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]
    changed_at: Moment
    pauses: Annotated[tuple[PauseTimes, ...], FailFast(), Field(max_length=100, strict=False)]

    @property
    def correlation_id(self) -> str:
        """The service's name, because the message is about no order."""
        return self.service
