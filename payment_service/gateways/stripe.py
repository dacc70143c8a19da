"""Charges cards over Stripe: one PaymentIntent for each key, remembered in a record of our own (docs/adr/0008).

The records are the collection `stripe_intents`, with the key of the charge as `_id`:

    {_id, openedAt, amount (minor units), currency, intentId, createdAt, authorizedAt?, voidedAt?, chargedAt?,
     refundedAt?, parts: [{refundId, amount, at}]?, partsAmount?}           the intent, and what was returned in parts
    {_id, openedAt, amount, currency, reason, createdAt}                    declined before a card was tried
    {_id, openedAt, closedAt}                                               closed by a refund before any charge

A record is written after its intent is created, which takes no money, and before the intent is confirmed, which does.
So an intent without a record never took any money, however old it is, and the first writer, a charge or a refund,
decides the key. The times of its outcomes are written before they are reported, so that the audit and the cleanup can
compare the records with the payments. `openedAt` comes from the request: a record with an earlier one belongs to a
deleted order with the same id, and is replaced. Records older than these fields lack all of them.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

import stripe
import structlog
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError
from stripe import PaymentIntent, RequestOptions

from payment_service.gateways.port import (
    Authorized,
    CaptureRefused,
    Charged,
    ChargeRequest,
    Declined,
    GatewayKeyReusedError,
    GatewayMisconfiguredError,
    GatewayTimeoutError,
    HeldCharge,
    NothingCharged,
    Refunded,
    RefundRefused,
)
from payment_service.gateways.stripe_http import HttpxTransport
from payment_service.gateways.stripe_outcomes import (
    ABANDONED,
    ALREADY_REFUNDED,
    NOTHING_AUTHORIZED,
    REQUESTED,
    UNEXPECTED_STATE,
    AmountRefusedError,
    capture_outcome,
    charge_outcome,
    decline_reason,
    holds_money,
    is_refunded,
    is_stored_failure,
    nothing_charged,
    part_outcome,
    refusal_reason,
    stripe_amount,
    translate_error,
)
from payment_service.refusals import CLOSED, NO_CARD
from shared import database
from shared.clock import Clock
from shared.database import Collection, Document
from shared.live_settings import LiveSecret, as_secret

DELETED_ORDER_AGE = timedelta(hours=12)
"""A record without `openedAt` that is older than its payment by more than this belongs to a deleted order: a cleanup
deletes no order younger than a day, and the machines' clocks differ by less."""

_WITH_CHARGE: stripe.params.PaymentIntentRetrieveParams = {"expand": ["latest_charge"]}
"""Only the charge of an intent shows whether it was refunded."""

_log = structlog.get_logger(__name__)

Result = TypeVar("Result")


class StripeGateway:
    """A Gateway that charges the PaymentMethod named by the request's token.

    `timeout_seconds` limits each HTTP request. None is retried here: a caller without an answer looks the outcome up.
    """

    def __init__(
        self, intents: Collection, *, api_key: str | LiveSecret, api_url: str, timeout_seconds: float, clock: Clock
    ) -> None:
        # Telemetry would write an identifier of this machine to the home directory and send it to Stripe.
        stripe.enable_telemetry = False
        # Their debug output contains tokens and keys.
        for chatty in ("stripe", "httpx", "httpcore"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._http = HttpxTransport(timeout_seconds=timeout_seconds)
        self._api_url = api_url
        self._key = as_secret(api_key)
        self._use_key(self._key.current())
        self._records = intents
        self._clock = clock

    def _use_key(self, key: str) -> None:
        client = stripe.StripeClient(
            key, base_addresses={"api": self._api_url}, http_client=self._http, max_network_retries=0
        )
        self._key_in_use = key
        self._intents = client.v1.payment_intents
        self._refunds = client.v1.refunds

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Use the present key; after it was refused, the next call looks for a changed one at once."""
        if (key := self._key.current()) != self._key_in_use:
            self._use_key(key)
        try:
            with _translating_errors():
                yield
        except GatewayMisconfiguredError:
            self._key.refresh()
            raise

    async def charge(self, request: ChargeRequest) -> Charged | Authorized | Declined:
        with self._call():
            record = await self._find(request)
            if record is None:
                return await self._charge_first(request)
            return await self._outcome(request, record) or await self._confirm(record)

    async def look_up(self, request: ChargeRequest) -> Charged | Authorized | Declined | None:
        with self._call():
            record = await self._find(request)
            return await self._outcome(request, record) if record else None

    async def capture(self, request: ChargeRequest) -> Charged | CaptureRefused:
        with self._call():
            record = await self._find(request)
            if record is None or "intentId" not in record or "reason" in record:
                return CaptureRefused(NOTHING_AUTHORIZED)
            outcome = await self._capture(record["intentId"])
            if isinstance(outcome, Charged):
                await self._stamp(record, "chargedAt")
            return outcome

    async def refund(self, request: ChargeRequest) -> Refunded | NothingCharged:
        with self._call():
            # Without a record no money was taken: closing the key declines a charge that arrives later.
            record = await self._find(request) or await self._find_or_insert(request, {"closedAt": self._clock()})
            if "intentId" not in record or "reason" in record:
                return NothingCharged(record.get("reason"))
            if "refundedAt" in record:
                return Refunded(record["intentId"])
            return await self._refund(record)

    async def refund_part(self, request: ChargeRequest, refund_id: str, amount: int) -> Refunded | RefundRefused:
        with self._call():
            record = await self._find(request)
            if record is None or "intentId" not in record or "reason" in record:
                return RefundRefused("Nothing was charged")
            if any(part["refundId"] == refund_id for part in record.get("parts", ())):
                return Refunded(record["intentId"])
            outcome = await self._refund_part(request, record["intentId"], refund_id, amount)
            if isinstance(outcome, Refunded):
                await self._record_part(record, refund_id, amount)
            return outcome

    async def held_since(self, moment: datetime) -> list[HeldCharge]:
        """Return the charges of orders that were created since then and hold money, whether or not we know them.

        Raises GatewayTimeoutError if Stripe does not answer.
        """
        params: stripe.params.PaymentIntentListParams = {
            "created": {"gte": int(moment.timestamp())},
            "limit": 100,
            "expand": ["data.latest_charge"],
        }
        with self._call():
            intents = await self._intents.list_async(params)
            held = [intent async for intent in intents.auto_paging_iter() if holds_money(intent)]
        keys = [getattr(intent.metadata, "orderId", None) for intent in held]
        return [HeldCharge(key, intent.id) for key, intent in zip(keys, held, strict=True) if key]

    async def drain(self) -> None:
        await self._http.close_async()

    async def _capture(self, intent_id: str) -> Charged | CaptureRefused:
        """Capture an intent. Only one capture of it can succeed, so no idempotency key is needed."""
        try:
            return capture_outcome(await self._intents.capture_async(intent_id))
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            # Captured before, or voided: the intent says so. Still authorised, it is this call that was refused.
            why = error.code or error.param or "no code"
            return capture_outcome(await self._retrieve(intent_id), refused_as=why)

    async def _refund_part(
        self, request: ChargeRequest, intent_id: str, refund_id: str, amount: int
    ) -> Refunded | RefundRefused:
        """Return a part of the charge, unless Stripe has the refund already: it forgets idempotency keys after a day.

        If Stripe has stored a failure under the key, the refund may have been made all the same. Stripe's list says so
        then, since a stored failure is that of a call which has ended.
        """
        if made := await self._find_refund(intent_id, refund_id):
            return part_outcome(made, intent_id)
        try:
            params: stripe.params.RefundCreateParams = {
                "payment_intent": intent_id,
                "amount": stripe_amount(amount, request.currency),
                "metadata": {"orderId": request.key, "refundId": refund_id},
            }
        except AmountRefusedError as refusal:
            return RefundRefused(str(refusal))
        key = f"{intent_id}-refund-{refund_id}"
        try:
            try:
                refund = await self._refunds.create_async(params, {"idempotency_key": key})
            except stripe.APIError as error:
                if not is_stored_failure(error):
                    raise
                refund = await self._find_refund(intent_id, refund_id) or await self._refunds.create_async(
                    params, {"idempotency_key": f"{key}-2"}
                )
        except stripe.InvalidRequestError as error:
            return RefundRefused(refusal_reason(error))
        return part_outcome(refund, intent_id)

    async def _find_refund(self, intent_id: str, refund_id: str) -> stripe.Refund | None:
        """Return the refund that Stripe has under this id, None if there is none."""
        params: stripe.params.RefundListParams = {"payment_intent": intent_id, "limit": 100}
        refunds = await self._refunds.list_async(params)
        async for refund in refunds.auto_paging_iter():
            if getattr(refund.metadata, "refundId", None) == refund_id:
                return refund
        return None

    async def _record_part(self, record: Document, refund_id: str, amount: int) -> None:
        """Record a part that was returned, for the audit; a repeated call changes nothing."""
        part = {"refundId": refund_id, "amount": amount, "at": self._clock()}
        await self._records.update_one(
            {"_id": record["_id"], "intentId": record["intentId"], "parts.refundId": {"$ne": refund_id}},
            {"$push": {"parts": part}, "$inc": {"partsAmount": amount}},
        )

    async def _refund(self, record: Document) -> Refunded | NothingCharged:
        intent = await self._retrieve(record["intentId"])
        if intent.status in ("requires_confirmation", "requires_action", "requires_capture"):
            intent = await self._cancel(intent.id, REQUESTED)
        if not is_refunded(intent):
            outcome = charge_outcome(intent)
            if isinstance(outcome, Declined):
                if intent.status == "canceled":
                    await self._stamp(record, "voidedAt")
                return nothing_charged(outcome)
            if not isinstance(outcome, Charged):
                raise GatewayTimeoutError("the payment intent is neither charged nor cancelled yet")
            await self._refund_charge(record["_id"], intent.id)
        await self._stamp(record, "refundedAt")
        return Refunded(intent.id)

    async def _find(self, request: ChargeRequest) -> Document | None:
        """Return the record of the request's key, after deleting one that belongs to a deleted order."""
        record: Document | None = await self._records.find_one({"_id": request.key})
        if record is None or not _is_of_deleted_order(record, request):
            return record
        _log.warning("record of a deleted order replaced", order_id=request.key, intent=record.get("intentId"))
        await self._records.delete_one(record)
        return None

    async def _stamp(self, record: Document, field: str) -> None:
        """Record the time at which an outcome of the intent was first seen."""
        if field not in record:
            among = {"_id": record["_id"], "intentId": record["intentId"], field: {"$exists": False}}
            await self._records.update_one(among, {"$set": {field: self._clock()}})

    async def _charge_first(self, request: ChargeRequest) -> Charged | Authorized | Declined:
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
        # Another process may have decided the key first: the record declines, or confirming shows its outcome.
        return _decided(request, record) or await self._confirm(record)

    async def _create(self, request: ChargeRequest, token: str, amount: int) -> dict[str, str]:
        """Create an intent at Stripe and return the fields that record it."""
        params: stripe.params.PaymentIntentCreateParams = {
            "amount": amount,
            "currency": request.currency.lower(),
            "payment_method": token,
            # Only cards are charged or declined at once, and there is no customer to redirect.
            "allowed_payment_method_types": ["card"],
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "metadata": {"orderId": request.key},
        }
        if not request.capture:
            params["capture_method"] = "manual"
        try:
            intent = await _idempotent(
                lambda options: self._intents.create_async(params, options), _creation_key(request)
            )
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            if reason := decline_reason(error):
                return {"reason": reason}
            raise
        return {"intentId": intent.id}

    async def _confirm(self, record: Document) -> Charged | Authorized | Declined:
        """Take the money. Only one confirmation of an intent can succeed, so no idempotency key is needed."""
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

    async def _decline_untried(self, record: Document, reason: str) -> Charged | Authorized | Declined:
        """Decline a card that Stripe has not tried, after cancelling the intent so that no later call charges it."""
        outcome = charge_outcome(await self._cancel(record["intentId"], REQUESTED))
        if isinstance(outcome, Charged):
            await self._stamp(record, "chargedAt")
            return outcome
        await self._records.update_one({"_id": record["_id"]}, {"$set": {"reason": reason}})
        return Declined(reason)

    async def _cancel(self, intent_id: str, reason: str) -> PaymentIntent:
        """Cancel the intent unless it is charged already, and return it."""
        try:
            return await self._intents.cancel_async(intent_id, {"cancellation_reason": reason})
        except stripe.InvalidRequestError as error:
            return await self._retrieve_overtaken(intent_id, error)

    async def _retrieve_overtaken(self, intent_id: str, error: stripe.InvalidRequestError) -> PaymentIntent:
        """Return an intent that another process has changed first; raise the error if it has another cause."""
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
            # The charge stays held; the reconciler asks again until an operator has settled it with Stripe.
            _log.error("Stripe could not refund a charge", key=key, intent=intent_id, why=why)
            raise GatewayTimeoutError(f"the refund is in state {refund.status}")

    async def _outcome(self, request: ChargeRequest, record: Document) -> Charged | Authorized | Declined | None:
        if decided := _decided(request, record):
            return decided
        return await self._settle(record, await self._retrieve(record["intentId"]))

    async def _settle(self, record: Document, intent: PaymentIntent) -> Charged | Authorized | Declined | None:
        """Return the outcome of an intent, after cancelling one that waits for its cardholder."""
        if intent.status == "requires_action":
            intent = await self._cancel(intent.id, ABANDONED)
        outcome = charge_outcome(intent)
        if isinstance(outcome, Authorized):
            await self._stamp(record, "authorizedAt")
        elif isinstance(outcome, Charged):
            await self._stamp(record, "chargedAt")
        elif is_refunded(intent):
            await self._stamp(record, "refundedAt")
        return outcome

    async def _find_or_insert(self, request: ChargeRequest, fields: dict[str, Any]) -> Document:
        """Insert the record of a key unless there is one, and return the record."""
        key, fields = request.key, {"openedAt": request.opened_at, **fields}
        try:
            found = await self._records.find_one_and_update(
                {"_id": key}, {"$setOnInsert": fields}, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # another process inserted it concurrently
            found = await self._records.find_one({"_id": key})
        if found is None:
            raise LookupError(f"the record of {key} is gone")
        return found


def _is_of_deleted_order(record: Document, request: ChargeRequest) -> bool:
    """Return whether the record belongs to an earlier order with the same id, which has been deleted."""
    if opened_at := record.get("openedAt"):
        return bool(opened_at < request.opened_at)
    written_at = record.get("createdAt") or record["closedAt"]
    return bool(written_at < request.opened_at - DELETED_ORDER_AGE)


def _creation_key(request: ChargeRequest) -> str:
    """Return Stripe's idempotency key for the intent, distinct from that of a deleted order with the same id."""
    return f"{request.key}-{request.opened_at:%Y%m%dT%H%M%S%f}"


def _decided(request: ChargeRequest, record: Document) -> Declined | None:
    """Return the decline that the record alone implies, if any.

    Raises GatewayKeyReusedError if the record is another charge's.
    """
    if "closedAt" in record or "refundedAt" in record:
        return Declined(CLOSED)
    if (record["amount"], record["currency"]) != (request.amount, request.currency):
        raise GatewayKeyReusedError(f"{request.key} was used for {record['amount']} {record['currency']}")
    return Declined(record["reason"]) if "reason" in record else None


async def _idempotent(call: Callable[[RequestOptions], Awaitable[Result]], key: str) -> Result:
    """Make a call under an idempotency key, and again without it if Stripe has stored a failure under the key.

    Only for calls that are harmless when repeated: creating an intent, which takes no money, and refunding all of a
    charge.
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
        translated = translate_error(error)
        if isinstance(translated, GatewayMisconfiguredError):
            _log.error(
                "Stripe does not accept our calls; correct the key, its permissions or the account",
                error=str(translated),
                request_id=error.request_id,
            )
        raise translated from None
    except PyMongoError as error:
        if database.is_transient(error):
            raise GatewayTimeoutError(str(error)) from error
        raise
