"""The orders of a load test. Pure: the same plan generates the same orders."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

Document = dict[str, Any]

PRICE = 10
"""The price of every unit, in major units."""

VARIETY = 1000
"""The number of different orders; a longer test repeats them, so encoding them does not slow it down."""

DISCOUNT, SHIPPING = 3, 4

DETAILS: Document = {
    "customer": {"name": "Ann Smith", "email": "ann@example.org", "phone": "+44 20 1234"},
    "discounts": [{"code": "SPRING", "amount": DISCOUNT}],
    "shippingAmount": SHIPPING,
    "note": "A gift",
    "metadata": {"channel": "app"},
}
DELIVERY_DETAILS: Document = {
    "method": "delivery",
    "callBefore": True,
    "instructions": "Ring twice",
    "address": {"line1": "1 High Street", "city": "Leeds", "postalCode": "LS1", "country": "GB"},
}
ITEM_DETAILS: Document = {"name": "Pizza", "options": {"extras": ["olives", "capers"]}}
"""What a shop knows about an order: every optional field of the API."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The parameters of a load test.

    With `rate` (orders per second) orders are placed at fixed times, whether or not earlier ones were answered and as
    far as `concurrency` connections allow. Without it, each connection places its next order as soon as it has an
    answer. With `slots` each order asks for the earliest delivery slot with room, under the rules of the stack. With
    `details` each order has a customer, an address, options, a discount and all else that a shop may know about it. An
    order that is refused for the moment (429, 503) is tried again for `patience` seconds. `timeout` (seconds) limits
    how long orders may take to settle after the last answer.
    """

    orders: int
    rate: float | None = None
    concurrency: int = 32
    products: int = 10
    lines: int = 1
    payment_token: str = "tok_ok"  # noqa: S105 - a card of the simulated gateway
    seed: int = 0
    timeout: float = 120
    slots: bool = False
    details: bool = False
    patience: float = 30

    def __post_init__(self) -> None:
        """Raise ValueError for a plan that cannot be carried out."""
        if self.lines > self.products:
            raise ValueError(f"{self.lines} lines per order need as many products, but there are {self.products}")

    @property
    def stock(self) -> int:
        """Units of each product: enough for any choice, as an order takes at most one unit of a product."""
        return self.orders

    def product_ids(self, load_id: str) -> list[str]:
        """Return the products of one run."""
        return [f"{load_id}-{number}" for number in range(1, self.products + 1)]

    def bodies(self, load_id: str) -> list[bytes]:
        """Return the different orders of one run, encoded; the run repeats them as often as needed."""
        chance = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        return [orjson.dumps(body) for body in self._orders(load_id, chance)]

    def _orders(self, load_id: str, chance: random.Random) -> Iterator[Document]:
        products = self.product_ids(load_id)
        item: Document = {"quantity": 1, "price": PRICE, **(ITEM_DETAILS if self.details else {})}
        delivery: Document = {**({"slot": "auto"} if self.slots else {}), **(DELIVERY_DETAILS if self.details else {})}
        for _ in range(min(self.orders, VARIETY)):
            yield {
                "userId": load_id,
                "items": [{"productId": product, **item} for product in chance.sample(products, self.lines)],
                "totalAmount": PRICE * self.lines + (SHIPPING - DISCOUNT if self.details else 0),
                "payment": {"token": self.payment_token},
                **({"delivery": delivery} if delivery else {}),
                **(DETAILS if self.details else {}),
            }
