"""A local HTTP server that implements the part of Stripe's API that the payment service uses, with injected faults.

PaymentIntents can be created, retrieved, listed, confirmed, captured and cancelled, and charges refunded, as a whole
or in parts. The server enforces the API key, the states of an intent, idempotency keys (a repeated request gets its
first answer, even a failure; a different request, or one that comes while the first is in progress, is rejected),
minimum amounts, and that no more is refunded than was charged.

The id of a card determines its behaviour, as in Stripe's test mode: `pm_card_visa`, `pm_card_chargeDeclined`,
`pm_card_authenticationRequired` (3-D Secure). An id that begins with `pm_once_` can be charged once, like the ids of
real customers' cards; other ids are unknown.
"""

import asyncio
import json
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response

from provisioning_service.simulator.server import NoAnswer, serving

API_KEY = "sk_test_ofTheLocalServer"
VISA = "pm_card_visa"
REFUSED = "pm_card_chargeDeclined"
THREE_D_SECURE = "pm_card_authenticationRequired"

Operation = Literal["create", "confirm", "capture", "cancel", "refund", "refunds", "retrieve", "list"]
Fault = Literal["fail before", "fail after", "lose answer", "rate limit", "hold"]

Answer = tuple[int, dict[str, Any]]


@dataclass
class Intent:
    """A PaymentIntent."""

    id: str
    amount: int
    currency: str
    order_id: str
    payment_method: str | None
    capture_method: str = "automatic"
    status: str = "requires_confirmation"
    failure: dict[str, Any] | None = None
    cancellation_reason: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    refunded: list[dict[str, Any]] = field(default_factory=list)
    """The refunds, oldest first."""

    @property
    def refunds(self) -> int:
        """The number of refunds that were made."""
        return sum(refund["status"] == "succeeded" for refund in self.refunded)

    @property
    def left(self) -> int:
        """The amount that is not refunded."""
        amounts: list[int] = [refund["amount"] for refund in self.refunded if refund["status"] != "failed"]
        return self.amount - sum(amounts)

    def shown(self, *, expanded: bool = False) -> dict[str, Any]:
        charge = {"id": f"ch_{self.id}", "object": "charge", "refunded": not self.left}
        latest = None if self.status not in ("succeeded", "requires_capture") else charge if expanded else charge["id"]
        return {
            "id": self.id,
            "object": "payment_intent",
            "amount": self.amount,
            "capture_method": self.capture_method,
            "currency": self.currency,
            "metadata": {"orderId": self.order_id},
            "payment_method": self.payment_method,
            "status": self.status,
            "last_payment_error": self.failure,
            "cancellation_reason": self.cancellation_reason,
            "latest_charge": latest,
        }


@dataclass
class StripeApi:
    """The running server: its intents, and the faults to inject."""

    url: str
    intents: dict[str, Intent] = field(default_factory=dict)
    requests: list[tuple[Operation, dict[str, str]]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Single-use cards that have been charged."""
    api_key: str = API_KEY
    refund_status: str = "succeeded"
    refuses_captures_as: str | None = None
    """The code with which captures are refused."""
    ignores_error_on_requires_action: bool = False
    waiting: int = 0
    """The number of requests that are held back."""
    _faults: dict[Operation, deque[Fault]] = field(default_factory=dict)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: dict[str, tuple[object, Answer | None]] = field(default_factory=dict)

    def disturb(self, operation: Operation, *faults: Fault) -> None:
        """Inject the faults into the next requests of that operation, one after the other."""
        self._faults.setdefault(operation, deque()).extend(faults)

    def release(self) -> None:
        """Let the requests that are held back continue."""
        self._released.set()

    def forget_keys(self) -> None:
        """Forget all idempotency keys, as Stripe does after a day."""
        self._kept.clear()

    def of(self, order_id: str) -> list[Intent]:
        """Return the intents of an order."""
        return [intent for intent in self.intents.values() if intent.order_id == order_id]

    def held(self) -> set[str]:
        """Return the orders whose money is held. Fails if one of them was charged twice."""
        holding = ("succeeded", "requires_capture")
        charged = [i.order_id for i in self.intents.values() if i.status in holding and i.left]
        assert len(charged) == len(set(charged)), "an order was charged twice"
        return set(charged)

    async def answer(
        self, request: Request, operation: Operation, carry_out: Callable[[dict[str, str]], Answer]
    ) -> Response:
        """Answer a request, with the next fault of its operation."""
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return _response(_error(401, "invalid_request_error", message="Invalid API Key provided: sk_test_****"))
        body = dict(parse_qsl((await request.body()).decode())) | dict(request.query_params)
        self.requests.append((operation, body))
        faults = self._faults.get(operation)
        fault = faults.popleft() if faults else None
        if fault == "rate limit":
            return _response(_error(429, "invalid_request_error", "rate_limit"))

        async def with_fault() -> Answer:
            if fault == "hold":
                self.waiting += 1
                await self._released.wait()
            if fault == "fail before":
                return _error(500, "api_error")
            answer = carry_out(body)
            return _error(500, "api_error") if fault == "fail after" else answer

        answer, replayed = await self._under_key(request, (request.url.path, body), with_fault)
        return NoAnswer() if fault == "lose answer" else _response(answer, replayed=replayed)

    async def _under_key(
        self, request: Request, asked: object, carry_out: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        key = request.headers.get("idempotency-key")
        if key is None:
            return await carry_out(), False
        if key not in self._kept:
            self._kept[key] = (asked, None)
            answer = await carry_out()
            self._kept[key] = (asked, answer)
            return answer, False
        first, kept = self._kept[key]
        if first != asked:
            return _error(400, "idempotency_error", message=f"Keys for idempotent requests ... {key}"), False
        if kept is None:
            return _error(409, "idempotency_error", "idempotency_key_in_use"), False
        return kept, True

    def create(self, body: dict[str, str]) -> Answer:
        amount, currency, card = int(body["amount"]), body["currency"], body["payment_method"]
        if currency == "usd" and amount < 50:
            return _invalid("amount_too_small", "amount", "Amount must be at least $0.50 usd")
        if card in self.used:
            return _used_before()
        if not card.startswith(("pm_card_", "pm_once_")):
            return _invalid("resource_missing", "payment_method", f"No such PaymentMethod: '{card}'")
        intent = Intent(f"pi_{secrets.token_hex(8)}", amount, currency, body["metadata[orderId]"], card)
        intent.capture_method = body.get("capture_method", "automatic")
        self.intents[intent.id] = intent
        return 200, intent.shown()

    def retrieve(self, intent: Intent, body: dict[str, str]) -> Answer:
        return 200, intent.shown(expanded=body.get("expand[0]") == "latest_charge")

    def confirm(self, intent: Intent, body: dict[str, str]) -> Answer:
        if intent.status not in ("requires_confirmation", "requires_payment_method"):
            return _unexpected_state(intent)
        card = body.get("payment_method", intent.payment_method)
        if card is None:
            return _unexpected_state(intent)
        if card in self.used:
            return _used_before()
        if card.startswith("pm_once_"):
            self.used.add(card)
        if card == REFUSED:
            return self._decline(intent, "card_declined", "Your card was declined.")
        if card == THREE_D_SECURE:
            errs = body.get("error_on_requires_action") == "true" and not self.ignores_error_on_requires_action
            if errs:
                return self._decline(intent, "authentication_required", "This payment requires authentication.")
            intent.status = "requires_action"
            return 200, intent.shown()
        intent.status = "requires_capture" if intent.capture_method == "manual" else "succeeded"
        return 200, intent.shown()

    def capture(self, intent: Intent) -> Answer:
        if intent.status != "requires_capture":
            return _unexpected_state(intent)
        if self.refuses_captures_as:
            return _invalid(self.refuses_captures_as, None, "This charge cannot be captured.")
        intent.status = "succeeded"
        return 200, intent.shown()

    def expire(self, intent: Intent) -> None:
        """Cancel an intent that waits for its capture, as Stripe does after some days."""
        intent.status, intent.cancellation_reason = "canceled", "automatic"

    def cancel(self, intent: Intent, body: dict[str, str]) -> Answer:
        if intent.status in ("succeeded", "canceled"):
            return _unexpected_state(intent)
        intent.status, intent.cancellation_reason = "canceled", body.get("cancellation_reason")
        return 200, intent.shown()

    def refund(self, body: dict[str, str]) -> Answer:
        intent = self.intents[body["payment_intent"]]
        if not intent.left:
            return _invalid("charge_already_refunded", None, "Charge has already been refunded.")
        if intent.status != "succeeded":
            return _invalid(None, "payment_intent", "This PaymentIntent does not have a successful charge to refund.")
        amount = int(body.get("amount", intent.left))
        if amount > intent.left:
            return _invalid(None, "amount", "Refund amount is greater than unrefunded amount on charge")
        refund = {
            "id": f"re_{secrets.token_hex(8)}",
            "object": "refund",
            "status": self.refund_status,
            "amount": amount,
        }
        refund["metadata"] = {key[9:-1]: value for key, value in body.items() if key.startswith("metadata[")}
        intent.refunded.append(refund)
        return 200, refund

    def list_refunds(self, body: dict[str, str]) -> Answer:
        found = self.intents[body["payment_intent"]].refunded
        return 200, {"object": "list", "data": found, "has_more": False, "url": "/v1/refunds"}

    def list_intents(self, body: dict[str, str]) -> Answer:
        """List the intents created since a time, newest first, in pages."""
        since, limit, after = int(body["created[gte]"]), int(body["limit"]), body.get("starting_after")
        newest = [intent for intent in reversed(self.intents.values()) if intent.created >= since]
        start = next((n + 1 for n, intent in enumerate(newest) if intent.id == after), 0)
        page = [i.shown(expanded=body.get("expand[0]") == "data.latest_charge") for i in newest[start : start + limit]]
        more = len(newest) > start + limit
        return 200, {"object": "list", "data": page, "has_more": more, "url": "/v1/payment_intents"}

    def _decline(self, intent: Intent, code: str, message: str) -> Answer:
        intent.status, intent.payment_method = "requires_payment_method", None
        intent.failure = {"type": "card_error", "code": code, "message": message}
        return 402, {"error": intent.failure | {"payment_intent": intent.shown()}}


def _error(status: int, kind: str, code: str | None = None, message: str = "Something is wrong", **more: Any) -> Answer:
    return status, {"error": {"type": kind, "code": code, "message": message, **more}}


def _invalid(code: str | None, param: str | None, message: str) -> Answer:
    return _error(400, "invalid_request_error", code, message, param=param)


def _used_before() -> Answer:
    return _invalid(None, None, "The provided PaymentMethod was previously used. It may not be used again.")


def _unexpected_state(intent: Intent) -> Answer:
    message = f"The PaymentIntent's status is {intent.status}."
    return _invalid("payment_intent_unexpected_state", "intent", message)


def _response(answer: Answer, *, replayed: bool = False) -> Response:
    status, body = answer
    headers = {"Request-Id": "req_1", **({"Idempotent-Replayed": "true"} if replayed else {})}
    return Response(json.dumps(body), status, headers, "application/json")


def _application(api: StripeApi) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/payment_intents")
    async def create(request: Request) -> Response:
        return await api.answer(request, "create", api.create)

    @app.get("/v1/payment_intents")
    async def list_intents(request: Request) -> Response:
        return await api.answer(request, "list", api.list_intents)

    @app.get("/v1/payment_intents/{intent_id}")
    async def retrieve(request: Request, intent_id: str) -> Response:
        return await api.answer(request, "retrieve", lambda body: api.retrieve(api.intents[intent_id], body))

    @app.post("/v1/payment_intents/{intent_id}/confirm")
    async def confirm(request: Request, intent_id: str) -> Response:
        return await api.answer(request, "confirm", lambda body: api.confirm(api.intents[intent_id], body))

    @app.post("/v1/payment_intents/{intent_id}/capture")
    async def capture(request: Request, intent_id: str) -> Response:
        return await api.answer(request, "capture", lambda _: api.capture(api.intents[intent_id]))

    @app.post("/v1/payment_intents/{intent_id}/cancel")
    async def cancel(request: Request, intent_id: str) -> Response:
        return await api.answer(request, "cancel", lambda body: api.cancel(api.intents[intent_id], body))

    @app.post("/v1/refunds")
    async def refund(request: Request) -> Response:
        return await api.answer(request, "refund", api.refund)

    @app.get("/v1/refunds")
    async def list_refunds(request: Request) -> Response:
        return await api.answer(request, "refunds", api.list_refunds)

    return app


@asynccontextmanager
async def run_stripe_api() -> AsyncIterator[StripeApi]:
    """Run the server in this process, on a free port, until the context ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    api = StripeApi(f"http://127.0.0.1:{listener.getsockname()[1]}")
    async with serving(_application(api), listener):
        try:
            yield api
        finally:
            api.release()
