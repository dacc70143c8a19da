"""Charges cards over Stripe: one PaymentIntent for each key, which a record of ours remembers (docs/adr/0008).

The record, in the collection `stripe_intents`, `_id` the key of the charge:

    {_id, openedAt, amount (minor units), currency, intentId, createdAt, chargedAt?, refundedAt?}    the intent
    {_id, openedAt, amount, currency, reason, createdAt}                    why no card was tried
    {_id, openedAt, closedAt}                                               closed by a refund before any charge

It is written between the creation of the intent, which takes no money, and its confirmation, which does. So what is
not in the records never took any, however long ago; and the first writer, a charge or a refund, decides the key.
`chargedAt` and `refundedAt` are written before the outcome is reported, so that the audit and the cleanup can compare
these records with the payments. `openedAt` is the request's: an earlier one belongs to an order of the same id that
was deleted since, and its record is replaced. Records from before these fields existed have none of them.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import stripe
import structlog
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError
from stripe import PaymentIntent, RequestOptions

from payment_service.gateways.port import (
    Charged,
    ChargeRequest,
    Declined,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    KeyReusedError,
    NothingCharged,
    Refunded,
)
from payment_service.gateways.stripe_http import HttpxTransport
from payment_service.gateways.stripe_outcomes import (
    ABANDONED,
    ALREADY_REFUNDED,
    CLOSED,
    NO_CARD,
    REQUESTED,
    UNEXPECTED_STATE,
    AmountRefusedError,
    charge_outcome,
    decline_reason,
    is_refunded,
    is_stored_failure,
    nothing_charged,
    stripe_amount,
    translate_error,
)
from shared import database
from shared.clock import Clock
from shared.database import Collection, Document

COLLECTION = "stripe_intents"

DELETED_ORDER_AGE = timedelta(hours=12)
"""A record without `openedAt` that is so much older than the payment was left behind by a cleanup, which deletes no
order younger than a day; clocks of machines differ by less."""

_WITH_CHARGE: stripe.params.PaymentIntentRetrieveParams = {"expand": ["latest_charge"]}
"""Only the charge of an intent says whether its money was returned."""

_log = structlog.get_logger(__name__)

Result = TypeVar("Result")


class StripeGateway:
    """Charges the PaymentMethod that the request's token names; a Gateway.

    `timeout_seconds` bounds each request. None is repeated here: who gets no answer looks it up.
    """

    def __init__(
        self, intents: Collection, *, api_key: str, api_url: str, timeout_seconds: float, clock: Clock
    ) -> None:
        # It would write an identifier of this machine into the home directory and send it along.
        stripe.enable_telemetry = False
        # Their debug lines have tokens and keys.
        for chatty in ("stripe", "httpx", "httpcore"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._http = HttpxTransport(timeout_seconds=timeout_seconds)
        client = stripe.StripeClient(
            api_key, base_addresses={"api": api_url}, http_client=self._http, max_network_retries=0
        )
        self._intents = client.v1.payment_intents
        self._refunds = client.v1.refunds
        self._records = intents
        self._clock = clock

    async def charge(self, request: ChargeRequest) -> Charged | Declined:
        """Take the money, once per key; see Gateway."""
        with _translating_errors():
            record = await self._find(request)
            if record is None:
                return await self._charge_first(request)
            return await self._outcome(request, record) or await self._confirm(record)

    async def look_up(self, request: ChargeRequest) -> Charged | Declined | None:
        """Say what became of the request; see Gateway."""
        with _translating_errors():
            record = await self._find(request)
            return await self._outcome(request, record) if record else None

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        """Return the whole charge, once per key, or close the key; see Gateway."""
        with _translating_errors():
            record = await self._find(request) or await self._find_or_insert(request, {"closedAt": self._clock()})
            if "intentId" not in record or "reason" in record:
                return NothingCharged(record.get("reason"))
            if "refundedAt" in record:
                return Refunded(record["intentId"])
            return await self._refund(record)

    async def drain(self) -> None:
        """Close the connections."""
        await self._http.close_async()

    async def _refund(self, record: Document) -> Refunded | NothingCharged:
        intent = await self._retrieve(record["intentId"])
        if intent.status in ("requires_confirmation", "requires_action"):
            intent = await self._cancel(intent.id, REQUESTED)
        if not is_refunded(intent):
            outcome = charge_outcome(intent)
            if isinstance(outcome, Declined):
                return nothing_charged(outcome)
            if outcome is None:
                raise GatewayTimeoutError("the payment intent is neither charged nor cancelled yet")
            await self._refund_charge(record["_id"], intent.id)
        await self._stamp(record, "refundedAt")
        return Refunded(intent.id)

    async def _find(self, request: ChargeRequest) -> Document | None:
        """Return the record of this request's key; one that a deleted order has left is deleted first."""
        record: Document | None = await self._records.find_one({"_id": request.key})
        if record is None or not _is_of_deleted_order(record, request):
            return record
        _log.warning("record of a deleted order replaced", order_id=request.key, intent=record.get("intentId"))
        await self._records.delete_one(record)
        return None

    async def _stamp(self, record: Document, field: str) -> None:
        """Write down when the intent's money was taken or returned, the first time that it is seen."""
        if field not in record:
            among = {"_id": record["_id"], "intentId": record["intentId"], field: {"$exists": False}}
            await self._records.update_one(among, {"$set": {field: self._clock()}})

    async def _charge_first(self, request: ChargeRequest) -> Charged | Declined:
        if request.token is None:
            return Declined(NO_CARD)
        try:
            amount = stripe_amount(request.amount, request.currency)
        except AmountRefusedError as refusal:
            return Declined(str(refusal))
        opened = await self._create(request, request.token, amount)
        record = await self._find_or_insert(
            request,
            {"amount": request.amount, "currency": request.currency, "createdAt": self._clock(), **opened},
        )
        # Somebody else may have been first: with a refund, or with a charge whose outcome confirming then shows.
        return _decided(request, record) or await self._confirm(record)

    async def _create(self, request: ChargeRequest, token: str, amount: int) -> dict[str, str]:
        """Have Stripe open an intent; returns what the record is to say of it."""
        params: stripe.params.PaymentIntentCreateParams = {
            "amount": amount,
            "currency": request.currency.lower(),
            "payment_method": token,
            # Cards alone are charged or declined at once, and nobody is there to be redirected.
            "allowed_payment_method_types": ["card"],
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "metadata": {"orderId": request.key},
        }
        try:
            intent = await _idempotent(
                lambda options: self._intents.create_async(params, options), _creation_key(request)
            )
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            if reason := decline_reason(error):
                return {"reason": reason}
            raise
        return {"intentId": intent.id}

    async def _confirm(self, record: Document) -> Charged | Declined:
        """Take the money. The intent lets only one confirmation succeed: it needs no idempotency key of ours."""
        intent_id = record["intentId"]
        try:
            intent = await self._intents.confirm_async(intent_id, {"error_on_requires_action": True})
        except stripe.CardError:
            intent = await self._retrieve(intent_id)
        except stripe.InvalidRequestError as error:
            if reason := decline_reason(error):
                return await self._decline_untried(record, reason)
            intent = await self._retrieve_overtaken(intent_id, error)
        outcome = await self._settle(record, intent)
        if outcome is None:
            raise GatewayTimeoutError("the payment intent is not confirmed yet")
        return outcome

    async def _decline_untried(self, record: Document, reason: str) -> Charged | Declined:
        """Decline for a card that Stripe did not even try; the intent is cancelled first, so that nobody ever does."""
        outcome = charge_outcome(await self._cancel(record["intentId"], REQUESTED))
        if isinstance(outcome, Charged):
            await self._stamp(record, "chargedAt")
            return outcome
        await self._records.update_one({"_id": record["_id"]}, {"$set": {"reason": reason}})
        return Declined(reason)

    async def _cancel(self, intent_id: str, reason: str) -> PaymentIntent:
        """Have nothing charged any more, unless it is already; returns the intent as it is then."""
        try:
            return await self._intents.cancel_async(intent_id, {"cancellation_reason": reason})
        except stripe.InvalidRequestError as error:
            return await self._retrieve_overtaken(intent_id, error)

    async def _retrieve_overtaken(self, intent_id: str, error: stripe.InvalidRequestError) -> PaymentIntent:
        """Return an intent with which somebody else was faster; raises the error if it says anything else."""
        if error.code != UNEXPECTED_STATE:
            raise error
        return await self._retrieve(intent_id)

    async def _retrieve(self, intent_id: str) -> PaymentIntent:
        return await self._intents.retrieve_async(intent_id, _WITH_CHARGE)

    async def _refund_charge(self, key: str, intent_id: str) -> None:
        try:
            refund = await _idempotent(
                lambda options: self._refunds.create_async({"payment_intent": intent_id}, options),
                f"{intent_id}-refund",
            )
        except stripe.InvalidRequestError as error:
            if error.code != ALREADY_REFUNDED:
                raise
            return
        if refund.status in ("failed", "canceled"):
            why = getattr(refund, "failure_reason", None)
            _log.error("Stripe could not refund a charge", key=key, intent=intent_id, why=why)
            raise GatewayTimeoutError(f"the refund is in state {refund.status}")

    async def _outcome(self, request: ChargeRequest, record: Document) -> Charged | Declined | None:
        if decided := _decided(request, record):
            return decided
        return await self._settle(record, await self._retrieve(record["intentId"]))

    async def _settle(self, record: Document, intent: PaymentIntent) -> Charged | Declined | None:
        """Return the outcome of an intent; one that waits for the cardholder, who is not there, is cancelled."""
        if intent.status == "requires_action":
            intent = await self._cancel(intent.id, ABANDONED)
        outcome = charge_outcome(intent)
        if isinstance(outcome, Charged):
            await self._stamp(record, "chargedAt")
        elif is_refunded(intent):
            await self._stamp(record, "refundedAt")
        return outcome

    async def _find_or_insert(self, request: ChargeRequest, fields: dict[str, Any]) -> Document:
        """Write the record of a key unless there is one; returns the one that is there then."""
        key, fields = request.key, {"openedAt": request.opened_at, **fields}
        try:
            found = await self._records.find_one_and_update(
                {"_id": key}, {"$setOnInsert": fields}, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # two inserted at once
            found = await self._records.find_one({"_id": key})
        if found is None:
            raise LookupError(f"the record of {key} is gone")
        return found


def _is_of_deleted_order(record: Document, request: ChargeRequest) -> bool:
    """Whether the record is of an earlier order of the same id, which was deleted since."""
    if opened_at := record.get("openedAt"):
        return bool(opened_at < request.opened_at)
    written_at = record.get("createdAt") or record["closedAt"]
    return bool(written_at < request.opened_at - DELETED_ORDER_AGE)


def _creation_key(request: ChargeRequest) -> str:
    """Return Stripe's idempotency key for the intent: Stripe may remember that of a deleted order of the same id."""
    return f"{request.key}-{request.opened_at:%Y%m%dT%H%M%S%f}"


def _decided(request: ChargeRequest, record: Document) -> Declined | None:
    """What the record alone says about the request; raises KeyReusedError when it is of another charge."""
    if "closedAt" in record or "refundedAt" in record:
        return Declined(CLOSED)
    if (record["amount"], record["currency"]) != (request.amount, request.currency):
        raise KeyReusedError(f"{request.key} was used for {record['amount']} {record['currency']}")
    return Declined(record["reason"]) if "reason" in record else None


async def _idempotent(call: Callable[[RequestOptions], Awaitable[Result]], key: str) -> Result:
    """Make a call under an idempotency key, and without it if what Stripe has kept under it is a failure of its own.

    Only for calls that cannot do harm twice: an intent that nobody confirms, a refund of what is refunded already.
    """
    try:
        return await call({"idempotency_key": key})
    except stripe.APIError as error:
        if not is_stored_failure(error):
            raise
        return await call({})


@contextmanager
def _translating_errors() -> Iterator[None]:
    try:
        yield
    except stripe.StripeError as error:
        ours = translate_error(error)
        if isinstance(ours, GatewayMisconfiguredError):
            _log.error(
                "Stripe does not accept our calls; the key, its permissions or the account have to be mended",
                error=str(ours),
                request_id=error.request_id,
            )
        raise ours from None
    except PyMongoError as error:
        if database.is_passing(error):
            raise GatewayTimeoutError(str(error)) from error
        raise
