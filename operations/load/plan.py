"""What a load test places. Pure: the same plan makes the same orders."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

PRICE = 10
"""Of every unit, in major units."""

VARIETY = 1000
"""Different orders; a longer test places the same ones again, so that encoding them takes no time from the test."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One load test.

    With `rate` (orders a second) orders are placed at fixed moments whether or not earlier ones were answered, as far
    as `concurrency` connections allow; without, each connection places its next order when its last one was answered.
    With `slots` each order wants the earliest delivery slot that has room; the rules are those that the stack has.
    `timeout` (seconds) is how long after the last answer all orders may take to settle.
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

    def __post_init__(self) -> None:
        """Raise ValueError for a plan that cannot be carried out."""
        if self.lines > self.products:
            raise ValueError(f"{self.lines} lines an order need as many products, there are {self.products}")

    @property
    def stock(self) -> int:
        """Units of each product that are enough whatever the orders choose: an order takes at most one."""
        return self.orders

    def product_ids(self, load_id: str) -> list[str]:
        """The products of one run."""
        return [f"{load_id}-{number}" for number in range(1, self.products + 1)]

    def bodies(self, load_id: str) -> list[bytes]:
        """The different orders of one run, encoded; the run goes over them again and again."""
        chance = random.Random(self.seed)  # noqa: S311 - repeatable on purpose
        return [orjson.dumps(body) for body in self._orders(load_id, chance)]

    def _orders(self, load_id: str, chance: random.Random) -> Iterator[dict[str, object]]:
        products = self.product_ids(load_id)
        delivery = {"delivery": {"slot": "auto"}} if self.slots else {}
        for _ in range(min(self.orders, VARIETY)):
            yield {
                "userId": load_id,
                "items": [
                    {"productId": product, "quantity": 1, "price": PRICE}
                    for product in chance.sample(products, self.lines)
                ],
                "totalAmount": PRICE * self.lines,
                "payment": {"token": self.payment_token},
                **delivery,
            }
