"""The base of all messages: routing key, rules for ids, tolerant reading and camelCase writing."""

from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

from shared.clock import to_rfc3339

OrderId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Safe as a document id, as a field name inside a document and in a URL path, even from a hostile sender."""

Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
"""A product, user or token: any text of 1 to 128 characters without control characters."""


def _one_path_part(name: str) -> str:
    if "/" in name or name in (".", ".."):
        raise ValueError("must not contain a slash, nor be . or ..: no URL could name it")
    return name


PathName = Annotated[Name, AfterValidator(_one_path_part)]
"""The name of something that has a URL; messages and records of earlier versions may contain other names."""

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A count, small enough for any database and any reader."""

Text = Annotated[str, Field(max_length=1000)]
"""A sentence for people, such as the reason of a refusal."""


Moment = Annotated[datetime, PlainSerializer(to_rfc3339, when_used="json")]
"""When something happened."""


class WireModel(BaseModel):
    """A frozen part of a message: strict types, unknown fields ignored, camelCase on the wire."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


class Message(WireModel):
    """A message on the bus; `correlation_id` identifies its subject.

    A `mandatory` message must reach a queue: the broker returns it instead of confirming and dropping it, and the
    sender keeps it until it can be routed.
    """

    routing_key: ClassVar[str]
    mandatory: ClassVar[bool] = True

    @property
    def correlation_id(self) -> str:
        """The id of the message's subject, for people and tools; receivers rely on the body alone."""
        raise NotImplementedError

    @property
    def partition_key(self) -> str | None:
        """What an inbox that is partitioned by product divides its messages by; None if no such inbox gets them.

        It only chooses the queue: a message without it arrives as well, and nothing depends on where.
        """
        return None

    def to_json(self) -> bytes:
        """Return the body for the wire, without absent optional fields."""
        return self.model_dump_json(exclude_none=True).encode()


class OrderMessage(Message):
    """A message about one order; receivers are idempotent by `order_id`."""

    order_id: OrderId

    @property
    def correlation_id(self) -> str:
        """The order's id."""
        return self.order_id
