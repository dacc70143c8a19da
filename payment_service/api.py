"""HTTP routes of the payment service: the payments of orders."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from payment_service.lifecycle import Payment, PaymentStatus
from payment_service.parts import returned
from payment_service.payments import Payments
from shared.access.middleware import Caller, requires
from shared.access.permissions import Permission
from shared.http import View, json_response, new_router, not_found
from shared.money import JsonMoney, to_json_number
from shared.paging import DEFAULT_LIMIT, CursorParameter, Limit, after_id, page_response

OrderIdParameter = Annotated[str, Path(min_length=1, max_length=200)]


class PaymentView(View):
    """An order's payment; user and amount are null where a refund came before its order: nothing is ever charged."""

    order_id: str
    user_id: str | None
    owner_id: str | None
    amount: JsonMoney | None
    status: PaymentStatus
    transaction_id: str | None
    failure_reason: str | None
    refunded_amount: JsonMoney


class PaymentPage(View):
    """A page of payments, in the order of their ids."""

    items: list[PaymentView]
    next_cursor: str | None


def create_router(payments: Payments) -> APIRouter:
    """Create the routes over the given payments."""
    router = new_router("payments")

    @router.get("/payments", response_model=PaymentPage)
    @requires(Permission.ORDERS_READ)
    async def list_order_payments(
        caller: Caller,
        status: PaymentStatus | None = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: CursorParameter = None,
    ) -> Response:
        """Payments in the order of their ids; all of them, or those in one status."""
        visible = caller.visible(Permission.ORDERS_READ)
        page = await payments.page(status, after=after_id(cursor), limit=limit, visible=visible)
        return page_response(page, show, key=lambda payment: [payment.order_id], limit=limit)

    @router.get("/payments/{order_id}", response_model=PaymentView)
    @requires(Permission.ORDERS_READ)
    async def get_order_payment(order_id: OrderIdParameter, caller: Caller) -> Response:
        """The payment of one order."""
        payment = await payments.find(order_id, caller.visible(Permission.ORDERS_READ))
        if payment is None:
            raise not_found(f"A payment of order {order_id}")
        return json_response(show(payment))

    return router


def show(payment: Payment) -> dict[str, Any]:
    """Convert a payment to the JSON of PaymentView."""
    return {
        "orderId": payment.order_id,
        "userId": payment.user_id,
        "ownerId": payment.owner_id,
        "amount": None if payment.amount is None else to_json_number(payment.amount),
        "status": payment.status,
        "transactionId": payment.transaction_id,
        "failureReason": payment.failure_reason,
        "refundedAmount": to_json_number(returned(payment)),
    }
