"""The messages of the order service: the order itself, commands to its participants, and events for anyone."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, FailFast, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from shared.contracts.base import Count, Moment, Name, OrderId, OrderMessage, PathName, Text, WireModel
from shared.contracts.failures import Code
from shared.money import Money

MAX_ITEMS = 100
MAX_QUANTITY = 1_000_000

MAX_REFUNDS = 100
"""Most refunds in part that one order may have, refused ones included: each is kept in the order's record."""

SLOT_PREFIX = "slot:"
SLOT_ID_PATTERN = SLOT_PREFIX + "(0|[1-9][0-9]{0,11})"
"""The id of a delivery slot: the Unix seconds of its start, in one spelling only."""


def _no_slot(product_id: str) -> str:
    if product_id.startswith(SLOT_PREFIX):
        raise ValueError(f"must not begin with {SLOT_PREFIX}, which marks delivery slots: see /slots")
    return product_id


ProductId = Annotated[PathName, AfterValidator(_no_slot)]
"""A product's id as clients may set it."""


class Item(WireModel):
    """One line of an order; `price` is per unit."""

    product_id: Name
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
    price: Annotated[Money, Field(ge=0)]


def _not_empty(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if not items:
        raise ValueError("must have at least 1 item")
    return items


# Without FailFast, a tuple collects the errors of every element before it checks its length. The minimum length is
# checked separately, because the elements missing after a failure would be reported as well.
Items = Annotated[tuple[Item, ...], FailFast(), Field(max_length=MAX_ITEMS, strict=False)]
"""The lines of an order; reading stops at the first invalid one."""


class PaymentInstruction(WireModel):
    """How the customer pays: a card token, or a retainer."""

    method: Literal["card", "retainer"] = "card"
    token: Name | None = None
    retainer_id: Name | None = None


class DeliveryInstruction(WireModel):
    """When the customer wants the goods: `auto` or a slot id; no slot at all when absent."""

    slot: Name | None = None


class _OfProducts(OrderMessage):
    """A message about an order's products, which a partitioned inventory keeps together by the first of them."""

    @property
    def partition_key(self) -> str:
        """The first product; the order's id if the message names none."""
        items: Sequence[Item | ReturnedItem] = getattr(self, "items", ())
        return items[0].product_id if items else self.order_id


class OrderCreated(_OfProducts):
    """An order was accepted; inventory and payment start work in parallel.

    `owner_id` is whom the order belongs to, absent if it was placed without authentication or by an earlier release.
    With `prices_required`, a product without a price is not sold: the price would be the client's. `hold_id` names the
    hold whose units the order takes over. `at` is when it was accepted, absent in messages of earlier releases.
    """

    routing_key: ClassVar[str] = "order.created"

    user_id: Name
    owner_id: Name | None = None
    items: Annotated[Items, AfterValidator(_not_empty)]
    total_amount: Annotated[Money, Field(ge=0)]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    payment: PaymentInstruction = PaymentInstruction()
    delivery: DeliveryInstruction = DeliveryInstruction()
    prices_required: bool | None = None
    hold_id: OrderId | None = None
    at: Moment | None = None


class ReleaseStock(_OfProducts):
    """Return the stock that the order holds, or make sure that it will never hold any."""

    routing_key: ClassVar[str] = "stock.release"

    items: Items = ()


class ShipStock(_OfProducts):
    """Count the stock that the order holds as shipped: the goods have left."""

    routing_key: ClassVar[str] = "stock.ship"


class CapturePayment(OrderMessage):
    """Take the money that was authorised for the order, which is fulfilled."""

    routing_key: ClassVar[str] = "payment.capture"


class RefundPayment(OrderMessage):
    """Refund what was charged for the order, or make sure that nothing will ever be charged."""

    routing_key: ClassVar[str] = "payment.refund"

    reason: Text = ""


RefundId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""The id of a refund in part: unique, and safe as a field name inside a document and as an idempotency key."""


class RefundPart(OrderMessage):
    """Return a part of what was charged for the order, once per `refund_id`."""

    routing_key: ClassVar[str] = "payment.refund_part"

    refund_id: RefundId
    amount: Annotated[Money, Field(gt=0)]
    reason: Text = ""


class ReturnedItem(WireModel):
    """The units of one product that a refund puts back into free stock."""

    product_id: Name
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


class ReturnStock(_OfProducts):
    """Put units of the order back into free stock, once per `refund_id`."""

    routing_key: ClassVar[str] = "stock.return"

    refund_id: RefundId
    items: Annotated[tuple[ReturnedItem, ...], FailFast(), Field(max_length=MAX_ITEMS, strict=False)]


class ProvisionServer(OrderMessage):
    """Buy the server that the order asks for.

    `run` counts the requests of one order, so a redelivered first request is not mistaken for an operator's retry.
    """

    routing_key: ClassVar[str] = "provisioning.requested"

    user_id: Name
    owner_id: Name | None = None
    package: Name
    package_id: Name | None = None
    ram: Annotated[Count, Field(ge=1)] | None = None
    run: Annotated[Count, Field(ge=1)] = 1


class CancelProvisioning(OrderMessage):
    """Stop buying if nothing was bought yet; `run` names the request, 0 if the sender does not count them."""

    routing_key: ClassVar[str] = "provisioning.cancel"

    run: Count = 0


class SnapshotItem(WireModel):
    """One line of an order in an event."""

    product_id: Name
    quantity: Count
    price: Money


class SnapshotServer(WireModel):
    """The server of an order in an event."""

    ip: Name
    username: Name | None
    os: Name | None
    expires_at: Name | None


class OrderSnapshot(WireModel):
    """An order as `GET /orders/{orderId}` shows it, without its history and anything personal.

    It describes the field `order` of events, whose fields pass through readers that do not know them all.
    """

    order_id: OrderId
    order_number: Name | None
    user_id: Name
    owner_id: Name | None
    items: Annotated[tuple[SnapshotItem, ...], Field(max_length=MAX_ITEMS)]
    total_amount: Money
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    status: Literal["PENDING", "CONFIRMED", "PROVISIONING", "COMPLETED", "CANCELLED", "FAILED"]
    stock_status: Name
    payment_status: Name
    provisioning_status: Name | None
    failure_reason: Text | None
    failure_code: Code | None = None
    settled: bool
    refunded_amount: Money
    slot: Name | None
    slot_start: datetime | None
    slot_visible_at: datetime | None
    server: SnapshotServer | None
    created_at: datetime
    updated_at: datetime
    confirmed_at: datetime | None
    completed_at: datetime | None
    cancelled_at: datetime | None
    hold_id: OrderId | None = None
    delivery: DeliveryInstruction | None = None


class _Described:
    """Gives a field the JSON schema of the snapshot."""

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(OrderSnapshot.__pydantic_core_schema__)


Snapshot = Annotated[dict[str, Any], _Described()]
"""An order as events carry it: not read into a model, so that fields of a newer sender are kept."""


class OrderEvent(OrderMessage):
    """An order has changed its status; for any listener.

    `at` is when it did, the same in every repetition. `order` is the order when the message was made. Messages of
    earlier releases have none of `owner_id`, `at` and `order`.
    """

    mandatory: ClassVar[bool] = False

    user_id: Name
    owner_id: Name | None = None
    total_amount: Money
    reason: Text | None = None
    at: Moment | None = None
    order: Snapshot | None = None


class OrderConfirmed(OrderEvent):
    """Stock is reserved and the payment is taken."""

    routing_key: ClassVar[str] = "order.confirmed"


class OrderProvisioning(OrderEvent):
    """Stock is reserved, the payment is taken, and the server is being bought."""

    routing_key: ClassVar[str] = "order.provisioning"


class OrderCompleted(OrderEvent):
    """The server is ready, or the goods are delivered."""

    routing_key: ClassVar[str] = "order.completed"


class OrderCancelled(OrderEvent):
    """The order will not be fulfilled; everything done for it is being undone."""

    routing_key: ClassVar[str] = "order.cancelled"


class OrderFailed(OrderEvent):
    """Provisioning failed; the money is held until an operator decides."""

    routing_key: ClassVar[str] = "order.failed"


class OrderRefunded(OrderMessage):
    """A part of the order's money was returned; for any listener.

    `at` is when it was, absent in messages of earlier releases.
    """

    routing_key: ClassVar[str] = "order.refunded"
    mandatory: ClassVar[bool] = False

    user_id: Name
    owner_id: Name | None = None
    refund_id: RefundId
    amount: Money
    at: Moment | None = None
    order: Snapshot | None = None
