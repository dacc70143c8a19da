"""The steps of the smoke test, each with what undoes it.

It takes no real money: amounts are a hundredth of XTS, the currency that ISO 4217 reserves for tests, so the books of
other currencies stay as they are. What cannot be deleted stays behind unused: the product, off sale and without stock,
which a later run uses again; the retainer, inactive; the order, refunded. A server costs money and stays, so it is only
bought on request.

Runs at the same time do not disturb each other: the customer is the run's own, and so is the product until it is given
back. Were they to share one, the first to end would take the stock of the others.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from operations.smoke.calls import Calls, StepFailedError
from operations.smoke.products import ProductOfRun
from shared.services import INVENTORY, ORDER, PAYMENT

CURRENCY = "XTS"
PRICE = 0.01
SERVER_SECONDS = 1800.0
"""How long a provider may take for a server, with all attempts."""
FINAL = ("CONFIRMED", "COMPLETED", "CANCELLED", "FAILED")

Outcome = Literal["done", "failed", "undone", "not undone"]
Undo = Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Step:
    """What became of a step, in words."""

    name: str
    outcome: Outcome
    detail: str

    @property
    def ok(self) -> bool:
        """True unless it failed."""
        return self.outcome in ("done", "undone")

    def as_json(self) -> dict[str, str]:
        """Return the step as JSON."""
        return {"step": self.name, "outcome": self.outcome, "detail": self.detail}


class SmokeTest:
    """One run of the smoke test; `within` are the seconds that an order may take."""

    def __init__(self, calls: Calls, *, within: float, server: str | None = None) -> None:
        self._calls = calls
        self._within = within
        self._server = server
        self._undo: list[tuple[str, Undo]] = []
        self._retainer = ""
        self.user = f"smoke-test-{uuid.uuid4().hex[:12]}"
        """The customer of this run."""
        self._products = ProductOfRun(calls, self.user)
        self._product = ""

    async def run(self) -> AsyncIterator[Step]:
        """Do the steps until one fails or is interrupted, then undo those that were begun, the last one first."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("stock", self._stock),
            ("hold", self._hold),
            ("funds", self._funds),
            ("order", self._order),
        ]
        if self._server is not None:
            steps.append(("server", self._buy_server))
        for name, do in steps:
            step = await _outcome(name, do, "done", "failed")
            yield step
            if not step.ok:
                break
        for name, undo in reversed(self._undo):
            yield await _outcome(name, undo, "undone", "not undone")

    # --- Stock. ---

    async def _stock(self) -> str:
        try:
            self._product = await self._products.take(2)
        finally:
            # Also when it is interrupted: the product may be taken although the answer was lost.
            if self._products.may_be_taken:
                self._undo.append(("stock", self._products.give_back))
        return f"2 units of {self._product}"

    # --- A hold, with room in a slot if there are slots. ---

    async def _hold(self) -> str:
        slots = (await self._calls.send("GET", INVENTORY.name, "/slots"))["items"]
        has_room = any(slot["capacity"] - slot["load"] >= PRICE for slot in slots if not slot["disabled"])
        items = [{"productId": self._product, "quantity": 1, "price": PRICE}]
        body = {"userId": self.user, "items": items, "ttlSeconds": 60} | ({"slot": "auto"} if has_room else {})
        held = await self._calls.send("POST", INVENTORY.name, "/holds", body)
        self._undo.append(("hold", lambda: self._delete_hold(held["holdId"])))
        if has_room:
            return f"1 unit, and room in the slot {held['slot']}"
        return f"1 unit; no slot, as {'all are full' if slots else 'none are on offer'}"

    async def _delete_hold(self, hold_id: str) -> str:
        await self._calls.send("DELETE", INVENTORY.name, f"/holds/{hold_id}")
        return "the hold is deleted"

    # --- Funds. ---

    async def _funds(self) -> str:
        # Before it is opened: it may exist although the answer was lost.
        self._undo.append(("funds", self._close_retainer))
        try:
            await self._open_retainer()
        except StepFailedError as error:
            if error.without_effect:
                self._undo.pop()
            raise
        return f"retainer {self._retainer} with {PRICE} {CURRENCY}"

    async def _open_retainer(self) -> None:
        """Open the retainer of this run; a repeated request finds the one that the first request opened."""
        body = {"clientId": self.user, "retainerType": "smoke test", "initialAmount": PRICE, "currency": CURRENCY}
        opened = await self._calls.send("POST", PAYMENT.name, "/api/retainers", body, key=self.user)
        self._retainer = opened["retainer"]["_id"]

    async def _close_retainer(self) -> str:
        if not self._retainer:
            await self._open_retainer()
        path = f"/api/retainers/{self._retainer}"
        closed = (await self._calls.send("PATCH", PAYMENT.name, path, {"status": "inactive"}))["retainer"]
        if closed["currentBalance"] != PRICE:
            raise StepFailedError(f"the retainer holds {closed['currentBalance']} {CURRENCY} and not {PRICE}")
        return f"the retainer holds {PRICE} {CURRENCY} again, and is inactive"

    # --- An order of goods. ---

    async def _order(self) -> str:
        payment = {"method": "retainer", "retainerId": self._retainer}
        # Before it is placed: it may exist although its answer was lost.
        self._undo.append(("order", self._take_back_all))
        order_id = await self._place(self._product, PRICE, payment)
        order = await self._ended(order_id, self._within)
        if order["status"] != "CONFIRMED":
            raise StepFailedError(f"order {order_id} is {order['status']}: {order['failureReason']}")
        return f"order {order_id} is paid and confirmed"

    async def _place(self, product: str, price: float, payment: dict[str, str]) -> str:
        """Place an order twice under one key, and check that there is one order."""
        items = [{"productId": product, "quantity": 1, "price": price}]
        body = {"userId": self.user, "items": items, "totalAmount": price, "currency": CURRENCY, "payment": payment}
        key = f"{self.user}-{product}"
        placed, repeated = [await self._calls.send("POST", ORDER.name, "/orders", body, key=key) for _ in range(2)]
        if placed["orderId"] != repeated["orderId"]:
            raise StepFailedError(f"one key made two orders: {placed['orderId']} and {repeated['orderId']}")
        return str(placed["orderId"])

    async def _ended(self, order_id: str, within: float) -> dict[str, Any]:
        path = f"/orders/{order_id}"
        ended = await self._calls.until(ORDER.name, path, lambda order: order["status"] in FINAL, within=within)
        return dict(ended)

    async def _take_back_all(self) -> str:
        found = (await self._calls.send("GET", ORDER.name, f"/orders?userId={self.user}"))["items"]
        goods = [order["orderId"] for order in found if order["totalAmount"]]
        return ", ".join([await self._take_back(order_id) for order_id in goods]) or "there is no order"

    async def _take_back(self, order_id: str) -> str:
        """Cancel the order if it is in progress, refund it if it is confirmed, and wait until that is done."""
        path = f"/orders/{order_id}"
        if (await self._calls.send("GET", ORDER.name, path))["status"] == "PENDING":
            with contextlib.suppress(StepFailedError):  # it was confirmed meanwhile; what else may be is seen below
                await self._calls.send("POST", ORDER.name, f"{path}/cancel", {"reason": "smoke test"})
        order = await self._calls.until(ORDER.name, path, lambda found: found["settled"], within=self._within)
        if order["status"] != "CONFIRMED":
            return f"order {order_id} is {order['status']}"
        lines = {"items": [{"productId": self._product, "quantity": 1}], "restock": True, "reason": "smoke test"}
        await self._calls.send("POST", ORDER.name, f"{path}/refunds", lines, key=self.user)
        await self._calls.until(ORDER.name, path, _is_refunded, within=self._within)
        return f"order {order_id} is refunded"

    # --- A server. ---

    async def _buy_server(self) -> str:
        order_id = await self._place(str(self._server), 0, {"method": "card"})
        order = await self._ended(order_id, SERVER_SECONDS)
        if order["status"] != "COMPLETED":
            raise StepFailedError(f"order {order_id} is {order['status']}: {order['failureReason']}")
        return f"order {order_id} bought {order['server']['ip']}, which stays: cancel it at the provider"


async def _outcome(name: str, act: Callable[[], Awaitable[str]], good: Outcome, bad: Outcome) -> Step:
    """Do or undo a step, and say what became of it: whatever goes wrong, the steps before it are undone."""
    try:
        return Step(name, good, await act())
    except StepFailedError as error:
        return Step(name, bad, str(error))
    except asyncio.CancelledError:  # Ctrl-C
        return Step(name, bad, "interrupted")
    except Exception as error:  # noqa: BLE001 - what was begun must be undone
        return Step(name, bad, f"an answer has another form than expected: {error!r}")


def _is_refunded(order: dict[str, Any]) -> bool:
    return bool(order["settled"] and order["refundedAmount"] == PRICE)
