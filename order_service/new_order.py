"""The body of a request for a new order: its fields, their limits, and the rule for its total."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from shared.contracts.base import Name, OrderId
from shared.contracts.orders import MAX_ITEMS, MAX_QUANTITY, SLOT_ID_PATTERN, ProductId
from shared.http import Body, shown_as
from shared.money import MAX_MINOR_UNITS, JsonMoney, require_whole, to_json_number
from shared.validation import wrong_field

MAX_OPTIONS_BYTES = 4096
MAX_OPTIONS = 200
MAX_DISCOUNTS = 20
MAX_METADATA = 50

_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
"""A text of 1 to 200 characters in one line, such as a name."""
Lines = Annotated[str, Field(pattern=rf"^[^{_CONTROL}]{{1,2000}}$")]
"""A text of 1 to 2000 characters, which may have several lines."""
MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
MetadataValue = Annotated[str, Field(pattern=rf"^[^{_CONTROL}]{{0,500}}$")]


def _at_most(names: int) -> Callable[[Any], Any]:
    """Return a validator that counts the names of an object before anything else is checked or copied."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > names:
            raise ValueError(f"has {len(given)} names, allowed are at most {names}")
        return given

    return check


_few_options, _few_metadata = _at_most(MAX_OPTIONS), _at_most(MAX_METADATA)


def _small(options: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(options))
    except (orjson.JSONEncodeError, RecursionError):
        raise ValueError("must be JSON with whole numbers of at most 64 bits") from None
    if size > MAX_OPTIONS_BYTES:
        raise ValueError(f"are {size} bytes of JSON, allowed are {MAX_OPTIONS_BYTES}")
    return options


class NewItem(Body):
    """One line of a new order; `price` is per unit, `name` and `options` are the shop's own."""

    product_id: ProductId
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
    price: Annotated[JsonMoney, Field(ge=0)]
    name: Line | None = None
    options: Annotated[dict[str, Any], BeforeValidator(_few_options), AfterValidator(_small)] | None = Field(
        default=None, description="Ingredients, extras, parts of a set: any object of at most 4 KiB as JSON"
    )


class NewPayment(Body):
    """How the customer pays: by card (default) with a token, or from a retainer."""

    method: Literal["card", "retainer"] = "card"
    token: Name | None = None
    retainer_id: Name | None = None

    @model_validator(mode="after")
    def _retainer_is_named(self) -> "NewPayment":
        if self.method == "retainer" and self.retainer_id is None:
            raise wrong_field("retainerId", "is required when method is retainer")
        return self


class Address(Body):
    """Where the goods go; the shop decides which parts it needs."""

    line1: Line | None = None
    line2: Line | None = None
    city: Line | None = None
    region: Line | None = None
    postal_code: Line | None = None
    country: Line | None = None


class NewDelivery(Body):
    """When and where the customer wants the goods; `slot` is `auto` or a slot id."""

    slot: Annotated[str, Field(pattern=f"^(auto|{SLOT_ID_PATTERN})$")] | None = None
    method: Literal["delivery", "pickup"] | None = None
    address: Address | None = None
    instructions: Lines | None = None
    call_before: bool | None = None


class Customer(Body):
    """The person who gets the goods."""

    name: Line | None = None
    email: Annotated[str, Field(max_length=254, pattern=r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+$")] | None = None
    phone: Annotated[str, Field(pattern=r"^[0-9+()./ -]{1,40}$")] | None = None


class Discount(Body):
    """An amount off the sum of the items."""

    code: Line | None = None
    amount: Annotated[JsonMoney, Field(ge=0)]


class NewOrder(Body):
    """What a client posts. `totalAmount` is the sum of the items, less the discounts, plus `shippingAmount`."""

    model_config = shown_as(
        {
            "userId": "u1",
            "items": [{"productId": "p1", "quantity": 2, "price": 19.99, "name": "Margherita"}],
            "shippingAmount": 2.5,
            "totalAmount": 42.48,
            "currency": "EUR",
            "payment": {"method": "card", "token": "tok_ok"},
            "delivery": {"slot": "auto", "method": "delivery", "address": {"line1": "1 Main Street", "city": "Berlin"}},
            "customer": {"name": "Ann", "email": "ann@example.org"},
        }
    )

    user_id: Name
    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_ITEMS)]
    # Before the total, whose validator needs them.
    shipping_amount: Annotated[JsonMoney, Field(ge=0)] | None = None
    discounts: Annotated[list[Discount], Field(max_length=MAX_DISCOUNTS)] | None = None
    total_amount: Annotated[JsonMoney, Field(ge=0)]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    payment: NewPayment = NewPayment()
    delivery: NewDelivery | None = None
    customer: Customer | None = None
    note: Lines | None = None
    hold_id: OrderId | None = None
    metadata: (
        Annotated[dict[MetadataKey, MetadataValue], BeforeValidator(_few_metadata), Field(max_length=MAX_METADATA)]
        | None
    ) = Field(
        default=None, description="The shop's own values; not for personal data, which `erase` would not find here"
    )

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: list[NewItem]) -> list[NewItem]:
        products = [item.product_id for item in items]
        if len(set(products)) < len(products):
            twice = next(product for product in products if products.count(product) > 1)
            raise ValueError(f"product {twice} is listed twice; put its units into one line")
        if _sum(items) > MAX_MINOR_UNITS:
            raise ValueError(f"their sum is more than {MAX_MINOR_UNITS // 100}")
        return items

    @field_validator("discounts")
    @classmethod
    def _leave_something(cls, discounts: list[Discount] | None, info: ValidationInfo) -> list[Discount] | None:
        if discounts and "items" in info.data and "shipping_amount" in info.data:
            off, full = _off(discounts), _sum(info.data["items"]) + (info.data["shipping_amount"] or 0)
            if off > full:
                raise ValueError(
                    f"they are {to_json_number(off)} together, more than the items and shippingAmount, "
                    f"which are {to_json_number(full)}"
                )
        return discounts

    @field_validator("total_amount")
    @classmethod
    def _adds_up(cls, total_amount: int, info: ValidationInfo) -> int:
        if not info.data.keys() >= {"items", "shipping_amount", "discounts"}:
            return total_amount  # one of them is wrong, which is said already
        total = _sum(info.data["items"]) - _off(info.data["discounts"]) + (info.data["shipping_amount"] or 0)
        if total_amount != total:
            of = "items"
            if info.data["discounts"] or info.data["shipping_amount"]:
                of = "items, less the discounts, plus shippingAmount"
            raise ValueError(f"is {to_json_number(total_amount)}, but the {of} add up to {to_json_number(total)}")
        if total > MAX_MINOR_UNITS:
            raise ValueError(f"is more than {MAX_MINOR_UNITS // 100}")
        return total_amount

    @field_validator("currency")
    @classmethod
    def _has_these_amounts(cls, currency: str, info: ValidationInfo) -> str:
        amounts = {f"items[{number}].price": item.price for number, item in enumerate(info.data.get("items", ()))}
        amounts |= {
            f"discounts[{number}].amount": discount.amount
            for number, discount in enumerate(info.data.get("discounts") or ())
        }
        amounts |= {"shippingAmount": info.data.get("shipping_amount") or 0}
        require_whole(currency, amounts | {"totalAmount": info.data.get("total_amount", 0)})
        return currency


def _sum(items: Sequence[NewItem]) -> int:
    return sum(item.quantity * item.price for item in items)


def _off(discounts: Sequence[Discount] | None) -> int:
    return sum(discount.amount for discount in discounts or ())


_ADDED: Mapping[type[BaseModel], tuple[str, ...]] = {
    NewOrder: ("shipping_amount", "discounts", "customer", "note", "metadata", "hold_id"),
    NewItem: ("name", "options"),
    NewDelivery: ("method", "address", "instructions", "call_before"),
}
"""Fields that bodies did not have in the first release."""


def fingerprint(new: NewOrder) -> str:
    """Return the SHA-256 of a body: equal for equal bodies, also from before fields were added that it does not use."""
    left_out: dict[str, Any] = _unused(new)
    if items := {number: unused for number, item in enumerate(new.items) if (unused := _unused(item))}:
        left_out["items"] = items
    if new.delivery is not None and (unused := _unused(new.delivery)):
        left_out["delivery"] = unused
    return hashlib.sha256(new.model_dump_json(exclude=left_out).encode()).hexdigest()


def _unused(body: BaseModel) -> dict[str, Any]:
    return {name: True for name in _ADDED[type(body)] if getattr(body, name) is None}
