"""What the API takes and answers, as types.

Readers are tolerant, so that this client works with later releases of the services: a field that it does not know is
kept in `model_extra`, and a status that it does not know is a plain `str`. Amounts are `Decimal`, times are in UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel


class Status(StrEnum):
    """Where an order is on its way."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    PROVISIONING = "PROVISIONING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class StockStatus(StrEnum):
    """What became of an order's stock."""

    PENDING = "PENDING"
    RESERVED = "RESERVED"
    FAILED = "FAILED"
    RELEASED = "RELEASED"
    SHIPPED = "SHIPPED"


class PaymentStatus(StrEnum):
    """What became of an order's payment."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"
    VOIDED = "VOIDED"
    REFUNDED = "REFUNDED"


class ProvisioningStatus(StrEnum):
    """How far an order's server is."""

    REQUESTED = "REQUESTED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class RefundStatus(StrEnum):
    """What became of a refund in part."""

    PENDING = "PENDING"
    REFUNDED = "REFUNDED"
    FAILED = "FAILED"


class FailureCode(StrEnum):
    """Why an order did not go through; docs/problems.md of ordersaga says what each means."""

    INSUFFICIENT_STOCK = "insufficient_stock"
    UNKNOWN_PRODUCT = "unknown_product"
    NOT_ON_SALE = "not_on_sale"
    WRONG_PRICE = "wrong_price"
    NO_PRICE = "no_price"
    TOO_MANY_SERVERS = "too_many_servers"
    SLOT_FULL = "slot_full"
    SLOT_UNAVAILABLE = "slot_unavailable"
    STOCK_REFUSED = "stock_refused"
    CARD_DECLINED = "card_declined"
    CARD_UNUSABLE = "card_unusable"
    CARD_MISSING = "card_missing"
    CARDHOLDER_REQUIRED = "cardholder_required"
    AUTHORIZATION_EXPIRED = "authorization_expired"
    RETAINER_UNAVAILABLE = "retainer_unavailable"
    RETAINER_CURRENCY = "retainer_currency"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    PAYMENT_CANCELLED = "payment_cancelled"
    PAYMENT_REFUSED = "payment_refused"
    CAPTURE_FAILED = "capture_failed"
    PACKAGE_UNAVAILABLE = "package_unavailable"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PURCHASE_FAILED = "purchase_failed"
    PROVISIONING_TIMED_OUT = "provisioning_timed_out"
    SERVER_NOT_READY = "server_not_ready"
    WRONG_ADDRESS = "wrong_address"
    PROVISIONING_FAILED = "provisioning_failed"
    CANCELLED_BY_CLIENT = "cancelled_by_client"
    TIMED_OUT = "timed_out"
    RETURNED_EARLY = "returned_early"
    OTHER = "other"


class DeliveryStatus(StrEnum):
    """What became of the delivery of an event to a webhook. PENDING: it will be attempted, perhaps again."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


Value = TypeVar("Value", bound=StrEnum)
Known = Annotated[Value | str, Field(union_mode="left_to_right")]
"""One of the values that are known, or a text that a later release has added."""


def _json_number(amount: Decimal) -> int | float:
    return int(amount) if amount == amount.to_integral_value() else float(amount)


# A float is exact here: an amount has at most 15 digits.
Amount = Annotated[Decimal, PlainSerializer(_json_number, when_used="json")]


class Model(BaseModel):
    """A part of a request or an answer: snake_case in Python, camelCase on the wire."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


ModelT = TypeVar("ModelT", bound=Model)


class Page(Model, Generic[ModelT]):
    """A page of a list; `next_cursor` leads to the next one."""

    items: Sequence[ModelT]
    next_cursor: str | None = None


class Item(Model):
    """One line of an order; `price` is per unit."""

    product_id: str
    quantity: int
    price: Amount
    name: str | None = None
    options: Mapping[str, Any] | None = None


class Discount(Model):
    """An amount off the sum of the items."""

    amount: Amount
    code: str | None = None


class Payment(Model):
    """How the customer pays: by card with a token, or from a retainer."""

    method: Literal["card", "retainer"] = "card"
    token: str | None = Field(default=None, repr=False)
    retainer_id: str | None = None


class Address(Model):
    """Where the goods go."""

    line1: str | None = None
    line2: str | None = None
    city: str | None = None
    region: str | None = None
    postal_code: str | None = None
    country: str | None = None


class Delivery(Model):
    """When and where the customer wants the goods; `slot` is `auto` or the id of a slot."""

    slot: str | None = None
    method: str | None = None
    address: Address | None = None
    instructions: str | None = None
    call_before: bool | None = None


class Customer(Model):
    """The person who gets the goods."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


class NewOrder(Model):
    """An order to place. Without `total_amount`, the total is calculated from the other amounts."""

    user_id: str
    items: Sequence[Item]
    total_amount: Amount | None = None
    currency: str | None = None
    payment: Payment | None = None
    delivery: Delivery | None = None
    discounts: Sequence[Discount] | None = None
    shipping_amount: Amount | None = None
    customer: Customer | None = None
    note: str | None = None
    hold_id: str | None = None
    metadata: Mapping[str, str] | None = None

    def total(self) -> Decimal:
        """Return the sum of the items, less the discounts, plus `shipping_amount`."""
        items = sum((item.quantity * item.price for item in self.items), Decimal(0))
        off = sum((discount.amount for discount in self.discounts or ()), Decimal(0))
        return items - off + (self.shipping_amount or 0)


class HistoryEntry(Model):
    """One line of an order's history."""

    at: datetime
    event: str
    status: Known[Status]
    message: str | None = None


class Server(Model):
    """The server of an order."""

    ip: str
    username: str | None = None
    os: str | None = None
    expires_at: str | None = None


class Order(Model):
    """An order. In lists and webhooks it has no history, and in lists items only if they were asked for.

    It is `settled` once nothing more happens to it by itself. `failure_code` is for programs, `failure_reason` for
    people.
    """

    order_id: str
    order_number: str | None = None
    user_id: str
    owner_id: str | None = None
    items: Sequence[Item] = ()
    total_amount: Amount
    currency: str
    status: Known[Status]
    stock_status: Known[StockStatus]
    payment_status: Known[PaymentStatus]
    provisioning_status: Known[ProvisioningStatus] | None = None
    failure_reason: str | None = None
    failure_code: Known[FailureCode] | None = None
    settled: bool
    refunded_amount: Amount = Decimal(0)
    slot: str | None = None
    slot_start: datetime | None = None
    slot_visible_at: datetime | None = None
    server: Server | None = None
    created_at: datetime
    updated_at: datetime
    confirmed_at: datetime | None = None
    completed_at: datetime | None = None
    cancelled_at: datetime | None = None
    customer: Customer | None = None
    delivery: Delivery | None = None
    discounts: Sequence[Discount] = ()
    shipping_amount: Amount | None = None
    note: str | None = None
    hold_id: str | None = None
    metadata: Mapping[str, str] | None = None
    personal_data_erased_at: datetime | None = None
    history: Sequence[HistoryEntry] = ()


class OrderEvent(Model):
    """Something that happened to an order, as `follow` yields it: a line of its history, or `settled` at the end.

    `event_id` is where to continue: `follow(order_id, after=event_id)` yields what comes after it.
    """

    event_id: str
    event: str
    at: datetime | None = None
    status: Known[Status] | None = None
    message: str | None = None


class RefundedItem(Model):
    """Units of a product that a refund is for."""

    product_id: str
    quantity: int


class NewRefund(Model):
    """A refund in part: of an `amount`, or of `items`; with `restock` their units go back into stock."""

    amount: Amount | None = None
    items: Sequence[RefundedItem] | None = None
    reason: str | None = None
    restock: bool | None = None


class Refund(Model):
    """A refund in part."""

    refund_id: str
    amount: Amount
    status: Known[RefundStatus]
    items: Sequence[RefundedItem] | None = None
    reason: str | None = None
    restock: bool = False
    returned: bool = False
    failure_reason: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Webhook(Model):
    """An endpoint that is told of events, such as `order.*`.

    Only the answers to `create` and `rotate` have the `secret`, which deliveries are verified with.
    """

    id: str
    url: str
    events: Sequence[str]
    enabled: bool = True
    user_id: str | None = None
    description: str | None = None
    owner_id: str | None = None
    disabled_reason: str | None = None
    disabled_at: datetime | None = None
    failing_since: datetime | None = None
    secret: str | None = Field(default=None, repr=False)
    created_at: datetime | None = None
    updated_at: datetime | None = None


class WebhookAttempt(Model):
    """An attempt to deliver: the status that was answered, or the error; `body` is the beginning of the answer."""

    at: datetime
    status: int | None = None
    error: str | None = None
    body: str = ""
    seconds: float | None = None


class WebhookDelivery(Model):
    """The delivery of one event to one endpoint; its `id` is the `webhook-id` of each attempt.

    Read alone, it also has the `body` that is sent, and the latest attempts as `history`.
    """

    id: str
    webhook_id: str
    type: str
    order_id: str | None = None
    status: Known[DeliveryStatus]
    failure_reason: str | None = None
    attempts: int = 0
    last_attempt: WebhookAttempt | None = None
    next_attempt_at: datetime | None = None
    created_at: datetime | None = None
    delivered_at: datetime | None = None
    body: str | None = None
    history: Sequence[WebhookAttempt] = ()


class Redelivered(Model):
    """How many deliveries are attempted again."""

    redelivered: int
